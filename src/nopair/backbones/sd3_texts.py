"""The tokenizers of Stable Diffusion 3, and CLIP's share of a prompt, as the stock pipeline makes them."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from nopair.errors import ModelError
from nopair.tokenizer import read_tokenizer

T5_TOKENS = 256
"""T5's share of an encoded prompt, as the stock pipeline has it; longer prompts are cut."""


def encode_clip(
    encoder: CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int
) -> tuple[Float[Tensor, "b token d"], Float[Tensor, "b pooled"]]:
    """Embeddings of the layer before the last, and the projection of the whole prompt."""
    ids = token_ids(tokenizer, prompts, tokens).to(encoder.device)
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds


def token_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int) -> Int[Tensor, "b token"]:
    """Ids of prompts, each padded or cut to so many."""
    return tokenizer(
        list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
    )["input_ids"]  # fmt: skip


def prompt_tokens(prompt: str, clip: PreTrainedTokenizerBase, t5: PreTrainedTokenizerBase | None) -> tuple[int, int]:
    """How many tokens a prompt takes, and how many are read. T5 reads on where both CLIPs have stopped."""
    if t5 is None:
        return len(clip(prompt)["input_ids"]), clip.model_max_length
    return len(t5(prompt)["input_ids"]), T5_TOKENS


def load_tokenizer(kind: type[CLIPTokenizer] | type[T5Tokenizer], folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer; without its files the library would make up an empty vocabulary.

    Raises:
        ModelError: it is missing or unreadable.
    """
    in_pieces = kind is CLIPTokenizer and not (folder / "tokenizer.json").is_file()
    for name in ("tokenizer_config.json", *(("vocab.json", "merges.txt") if in_pieces else ("tokenizer.json",))):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; the model folder is incomplete, copy it again")
    return read_tokenizer(folder, kind)
