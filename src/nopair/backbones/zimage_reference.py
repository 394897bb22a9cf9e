"""How a Z-Image transformer was taught to read a reference and a prompt. There are two dialects.

* `omni` is the family's own: the library's mode for several images, see `nopair.backbones.zimage`.
* `frames` is that of the students which the authors of NP-Edit publish (github.com/nupurkmr9/npedit): reference and
  target are the two frames of one image in the library's text-to-image mode. Of a prompt padded to n tokens, prompt
  tokens stand at frame positions 1 to n, the reference at n + 1, the target at n + 2, at the same rows and columns;
  images come first in the sequence, then the prompt. In this mode the library tells all tokens the same time. Theirs
  tells the tokens of the reference the clean time instead, and all others t, padding and prompt included.

Omni differs in all of that but the rows, the columns and the times: its reference stands before the prompt, at 1, and
the prompt comes first in the sequence. A student of one dialect is not one of the other.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from nopair.errors import ModelError, OutputError

DIALECT_FILE: Final = "zimage.json"

Image = Float[Tensor, "c 1 h w"]
Prompt = Float[Tensor, "_ d"]
Attach = Callable[
    [ZImageTransformer2DModel, Sequence[Image], Sequence[Image], Float[Tensor, " b"], Sequence[Prompt]], list[Image]
]
"""(transformer, references, targets, the library's time, prompts) -> the library's outputs of the targets."""


class Dialect(BaseModel):
    """What a transformer was trained on: the contents of zimage.json. Without such a file it is the family's own.

    `reference` is the way it was given the reference. `thinking` is the chat template's switch for prompts; without it,
    the template adds an empty thought to the prompt.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    reference: Literal["omni", "frames"] = "omni"
    thinking: bool = True

    @property
    def attach(self) -> Attach:
        return {"omni": omni, "frames": frames}[self.reference]


OWN: Final = Dialect()
"""The family's."""


def read_dialect(folder: Path) -> Dialect:
    """The dialect of a Z-Image folder.

    Raises:
        ModelError: its file cannot be read or says something else.
    """
    path = folder / DIALECT_FILE
    try:
        return Dialect.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return OWN
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check the rights") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelError(f"{path}: {place}: {first['msg']}; copy the folder again") from None


def write_dialect(dialect: Dialect, folder: Path) -> None:
    """Write what `read_dialect` reads: no file for the family's own.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / DIALECT_FILE
    try:
        if dialect == OWN:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(dialect.model_dump(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); check space and rights") from None


def omni(
    transformer: ZImageTransformer2DModel,
    references: Sequence[Image],
    targets: Sequence[Image],
    t: Float[Tensor, " b"],
    prompts: Sequence[Prompt],
) -> list[Image]:
    """The library's own mode for several images; `nopair.backbones.zimage` says why the first prompt piece is empty."""
    patch, frame_patch = _patches(transformer)
    return transformer(
        [list(pair) for pair in zip(references, targets, strict=True)],
        t,
        [[prompt[:0], prompt] for prompt in prompts],
        siglip_feats=[None] * len(prompts),
        image_noise_mask=[[0, 1]] * len(prompts),
        return_dict=False,
        patch_size=patch,
        f_patch_size=frame_patch,
    )[0]


def frames(
    transformer: ZImageTransformer2DModel,
    references: Sequence[Image],
    targets: Sequence[Image],
    t: Float[Tensor, " b"],
    prompts: Sequence[Prompt],
) -> list[Image]:
    """The library's text-to-image forward on images of two frames, but with the clean time for the first one.

    The library has no switch for that, so its parts are called here one by one.
    """
    patch, frame_patch = _patches(transformer)
    pairs = [torch.cat(pair, dim=1) for pair in zip(references, targets, strict=True)]
    patches, words, sizes, image_places, word_places, image_padding, word_padding = transformer.patchify_and_embed(
        pairs, list(prompts), patch, frame_patch
    )
    times = [transformer.t_embedder(time * transformer.t_scale).type_as(pairs[0]) for time in (t, torch.ones_like(t))]
    turns = [transformer.rope_embedder(places) for places in image_places]
    # The library makes more positions than tokens, and cuts them.
    word_turns = [transformer.rope_embedder(places[: len(row)]) for row, places in zip(words, word_places, strict=True)]
    embedded = _embed(transformer.all_x_embedder[f"{patch}-{frame_patch}"], patches)
    images = _with_padding(embedded, image_padding, transformer.x_pad_token)
    texts = _with_padding(_embed(transformer.cap_embedder, words), word_padding, transformer.cap_pad_token)

    reference_tokens = pairs[0][0, 0].numel() // patch**2
    noisy = [(torch.arange(len(row), device=row.device) >= reference_tokens).long() for row in images]
    images = _through(transformer, transformer.noise_refiner, images, turns, noisy, times)
    texts = _through(transformer, transformer.context_refiner, texts, word_turns)
    rows = [torch.cat(pair) for pair in zip(images, texts, strict=True)]
    turns = [torch.cat(pair) for pair in zip(turns, word_turns, strict=True)]
    noisy = [torch.cat([mask, mask.new_ones(len(text))]) for mask, text in zip(noisy, texts, strict=True)]
    rows = _through(transformer, transformer.layers, rows, turns, noisy, times)
    output = transformer.all_final_layer[f"{patch}-{frame_patch}"](
        pad_sequence(rows, batch_first=True),
        noise_mask=pad_sequence(noisy, batch_first=True),
        c_noisy=times[0],
        c_clean=times[1],
    )
    return [image[:, 1:] for image in transformer.unpatchify(list(output), sizes, patch, frame_patch)]


def _patches(transformer: ZImageTransformer2DModel) -> tuple[int, int]:
    """Rows or columns, and frames, of one patch."""
    return transformer.config["all_patch_size"][0], transformer.config["all_f_patch_size"][0]


def _embed(embedder: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    return list(embedder(torch.cat(list(rows))).split([len(row) for row in rows]))


def _with_padding(rows: Sequence[Tensor], padding: Sequence[Tensor], token: Tensor) -> list[Tensor]:
    return [torch.where(is_pad[:, None], token, row) for row, is_pad in zip(rows, padding, strict=True)]


def _through(
    transformer: ZImageTransformer2DModel,
    blocks: nn.ModuleList,
    rows: Sequence[Tensor],
    turns: Sequence[Tensor],
    noisy: Sequence[Tensor] | None = None,
    times: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Sequences of any lengths through blocks, with their rotary turns.

    `noisy` has a 1 for each token that is told `times[0]`, and a 0 for each that is told `times[1]`; blocks that are
    told no time need neither. As in the library, padding to a block of tokens is attended to, that of the batch is not.
    """
    lengths = [len(row) for row in rows]
    batch, batch_turns = pad_sequence(list(rows), batch_first=True), pad_sequence(list(turns), batch_first=True)
    seen = torch.arange(batch.shape[1], device=batch.device) < batch.new_tensor(lengths)[:, None]
    told = () if noisy is None else (None, pad_sequence(list(noisy), batch_first=True), *times)
    arguments = (None if min(lengths) == max(lengths) else seen, batch_turns, *told)
    for block in blocks:
        if torch.is_grad_enabled() and transformer.gradient_checkpointing:
            batch = checkpoint(block, batch, *arguments, use_reentrant=False)
        else:
            batch = block(batch, *arguments)
    return [row[:length] for row, length in zip(batch, lengths, strict=True)]
