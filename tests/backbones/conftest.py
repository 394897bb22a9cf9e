"""A random-weight Z-Image small enough to run in milliseconds, built from configs only."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ZImageTransformer2DModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2TokenizerFast, Qwen3Config, Qwen3Model

from nopair.backbones.adapters import save_adapter
from nopair.backbones.roles import LoraRoles
from nopair.backbones.zimage import ZImageBackbone
from nopair.data.images import load_image
from nopair.editor import Editor
from nopair.exchange import export_editor
from nopair.method.rollout import rollout, sampler_levels

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, without merges: every prompt encodes, one token per byte."""
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, unk_token=None, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:2]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_backbone(seed: int) -> ZImageBackbone:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.7,
        shift_factor=0.3,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=1024,
        )
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    # Pad tokens start at zero; anything else shows whether they take part where they should not.
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return ZImageBackbone(
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        shift=3.0,
    )


@pytest.fixture(scope="session")
def shared_backbone() -> ZImageBackbone:
    """One for all tests that only read."""
    return tiny_backbone(0)


@pytest.fixture
def backbone() -> ZImageBackbone:
    """A fresh one, for tests that train or change it."""
    return tiny_backbone(0)


# --- as others publish --------------------------------------------------------------------------------------------


def _shard(folder: Path, weights: dict[str, Tensor], stem: str, files: int) -> None:
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    names, places = sorted(weights), {}
    for number in range(files):
        file = f"{stem}-{number + 1:05}-of-{files:05}.safetensors"
        part = {name: weights[name].contiguous() for name in names[number::files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _qwen3_config(config: Qwen3Config) -> dict[str, Any]:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "hidden_act")  # fmt: skip
    return {
        **{key: getattr(config, key) for key in keys},
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": config.rope_parameters["rope_theta"],
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
    }


@pytest.fixture(scope="session")
def shard() -> Callable[[Path, dict[str, Tensor], str, int], None]:
    """Replaces the weights in a folder by so many files named after a stem, and their index."""
    return _shard


@pytest.fixture(scope="session")
def qwen3_config() -> Callable[[Qwen3Config], dict[str, Any]]:
    """A text encoder's config.json as of transformers 4.5x: of a language model, rotary settings on the top level."""
    return _qwen3_config


# --- what docs/export.md says -------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
LOADING = re.compile(
    r'^(?P<name>\w+) = (?P<family>\w+)\.from_pretrained\("copy", dtype=torch\.bfloat16\)$', re.MULTILINE
)


Draw = Callable[[int], Tensor]
"""The noise of step k in nopair's shape, drawn from the global generator as a pipeline draws it in its own."""


def _code(heading: str, height: int, width: int) -> str:
    """The code below a heading of docs/export.md, at another size than 512 x 512 and in float32."""
    section = re.split(f"\n###? {heading}\n", DOCS.read_text(encoding="utf-8"))[1]
    code = section.split("```python\n")[1].split("```")[0]
    sized = code.replace("(512, 512", f"({width}, {height}")
    sized = sized.replace("height=512", f"height={height}").replace("width=512", f"width={width}")
    assert "512" not in sized
    return sized


def _run(code: str) -> Tensor:
    """Run such code where it finds what it names; gives the image it makes. It seeds torch with 0."""
    exec(compile(code.replace("bfloat16", "float32"), DOCS, "exec"), {})
    return load_image(Path("new.png"))


def _photo(height: int, width: int) -> Tensor:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save("photo.png")
    return pixels.permute(2, 0, 1)[None] / 255


def _own(backbone: Any, editor: Editor, photo: Tensor, draw: Draw) -> Tensor:
    """The image that nopair's sampler makes of a photo, from the noise that the code draws."""
    torch.manual_seed(0)
    noises = torch.stack([draw(step) for step in range(editor.settings.steps)])
    text = backbone.encode_text(["make the cat orange"])
    with torch.no_grad():
        reference = backbone.encode_image(photo)
        x0 = rollout(lambda x, t: backbone.velocity(x, t, text, reference), noises, sampler_levels(editor.levels, 1))
        image = backbone.decode_latents(x0)[0].clamp(0, 1)
    assert image.std() > 0.01
    return image


@pytest.fixture
def check_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Editor, str, Draw], None]:
    """Exports an editor, runs the code below a heading of docs/export.md on the copy, and compares with nopair's image.

    At the editor's size, and in float32.
    """

    def check(editor: Editor, heading: str, draw: Draw) -> None:
        monkeypatch.chdir(tmp_path)
        editor.save(tmp_path / "editor")
        export_editor(tmp_path / "editor", tmp_path / "copy", "fp32")
        photo = _photo(editor.settings.height, editor.settings.width)
        made = _run(_code(heading, editor.settings.height, editor.settings.width))
        own = _own(Editor.load(tmp_path / "copy").backbone, editor, photo, draw)
        torch.testing.assert_close(made, own, atol=0.51 / 255, rtol=0)

    return check


@pytest.fixture
def check_adapter_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Editor, Sequence[str], str, Draw], None]:
    """The same for a random adapter of the editor's backbone alone: the code below "An adapter alone", then the
    family's. nopair's image is that of the merged export.
    """

    def check(editor: Editor, targets: Sequence[str], heading: str, draw: Draw) -> None:
        monkeypatch.chdir(tmp_path)
        backbone, settings = editor.backbone, editor.settings
        backbone.save(tmp_path / "base")
        merged = _adapted(backbone, targets, tmp_path / "runs" / "mine" / "adapter")[0]
        loading = _code("An adapter alone", settings.height, settings.width)
        loading = loading.replace("shift=5.0", f"shift={settings.shift}")
        code, count = LOADING.subn(
            lambda found: re.sub(r"\bpipe\b", found["name"], loading.replace("ZImagePipeline", found["family"])),
            _code(heading, settings.height, settings.width),
        )
        assert count == 1
        photo = _photo(settings.height, settings.width)
        made, own = _run(code), _own(merged, editor, photo, draw)
        torch.testing.assert_close(made, own, atol=0.6 / 255, rtol=0)
        assert (own - _own(backbone, editor, photo, draw)).abs().max() > 5 / 255

    return check


# --- adapters in stock diffusers ----------------------------------------------------------------------------------


def _adapted(backbone: Any, targets: Sequence[str], folder: Path) -> tuple[Any, Any, dict[str, Tensor]]:
    """A random adapter of a backbone, saved alone: the merged export, the teacher, and the adapter's weights."""
    roles = LoraRoles.of(backbone, rank=3, alpha=5.0, targets=targets, seed=0, ranks=backbone.adapter_ranks)
    weights = {name: 0.2 * torch.randn(weight.shape) for name, weight in roles.trainable("student").items()}
    save_adapter(weights, 5.0 / 3, folder)
    return backbone.with_transformer(roles.export("student", weights)), roles.teacher, weights


@pytest.fixture
def check_adapter(tmp_path: Path) -> Callable[..., Any]:
    """Saves a random adapter of a backbone alone, loads it with stock code onto the base, and compares its velocity
    with that of the merged export. Returns the stock pipeline.
    """

    def check(backbone: Any, pipeline: type[DiffusionPipeline], targets: Sequence[str], channels: int) -> Any:
        backbone.save(tmp_path / "base")
        merged, teacher, weights = _adapted(backbone, targets, tmp_path / "adapter")
        stock: Any = pipeline.from_pretrained(tmp_path / "base")
        stock.load_lora_weights(tmp_path / "adapter")
        loaded = backbone.with_transformer(stock.transformer)
        noisy, t, reference = torch.randn(2, channels, 8, 8), torch.rand(2), torch.randn(2, channels, 8, 8)
        text = backbone.encode_text(["a red circle", "remove it"])
        with torch.no_grad():
            for given in (None, reference):
                wanted = merged.velocity(noisy, t, text, given)
                torch.testing.assert_close(loaded.velocity(noisy, t, text, given), wanted, atol=2e-5, rtol=1e-4)
                plain = teacher.velocity(noisy, t, text, given)
                assert (wanted - plain).abs().max() > 0.01
        adapted = {name.rpartition(".lora_")[0] for name in weights}
        found = {name for name, module in stock.transformer.named_modules() if isinstance(module, LoraLayer)}
        assert found == adapted
        return stock

    return check
