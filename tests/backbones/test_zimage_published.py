"""Z-Image as Tongyi-MAI/Z-Image publishes it: its files, the words in its configs, its size."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from nopair.backbones.zimage import MAX_TOKENS, ZImageBackbone
from nopair.errors import ModelError
from nopair.types import Text

THETA = 1_000_000.0
"""The published text encoder's, and not the library's default."""
FULL = {
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
"""transformer/config.json, without the two keys that begin with an underscore."""
FULL_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
FULL_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": THETA,
}


@pytest.fixture(scope="module")
def original(shared_backbone: ZImageBackbone) -> ZImageBackbone:
    torch.manual_seed(1)
    config = Qwen3Config.from_dict(shared_backbone.text_encoder.config.to_dict())
    config.rope_parameters = {"rope_theta": THETA, "rope_type": "default"}
    text_encoder = Qwen3Model(config).eval().requires_grad_(False)
    assert text_encoder.rotary_emb.inv_freq[1] < 0.9 * shared_backbone.text_encoder.rotary_emb.inv_freq[1]
    return dataclasses.replace(shared_backbone, text_encoder=text_encoder, shift=6.0)


@pytest.fixture
def published(
    original: ZImageBackbone,
    shard: Callable[[Path, dict[str, Tensor], str, int], None],
    qwen3_config: Callable[[Qwen3Config], dict[str, Any]],
    tmp_path: Path,
) -> Path:
    """File by file as in the repository of Tongyi-MAI/Z-Image."""
    folder = tmp_path / "published"
    original.save(folder)
    shard(folder / "transformer", original.transformer.state_dict(), "diffusion_pytorch_model", 2)
    config = {key: original.transformer.config[key] for key in FULL}
    old = {"_class_name": "ZImageTransformer2DModel", "_diffusers_version": "0.37.0.dev0"}
    (folder / "transformer/config.json").write_text(json.dumps({**old, **config}))

    language_model = {f"model.{name}": tensor for name, tensor in original.text_encoder.state_dict().items()}
    shard(folder / "text_encoder", language_model, "model", 3)
    (folder / "text_encoder/config.json").write_text(json.dumps(qwen3_config(original.text_encoder.config)))

    tokenizer = folder / "tokenizer"
    whole = json.loads((tokenizer / "tokenizer.json").read_text())
    (tokenizer / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    template = tokenizer / "chat_template.jinja"
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    words = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": template.read_text(), "model_max_length": 131072}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**settings, **words}))
    template.unlink()

    shift = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 6.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({**shift, "use_dynamic_shifting": False}))
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "Qwen2Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_fixture_has_the_published_files(published: Path) -> None:
    assert _files(published) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        *(f"text_encoder/model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        "text_encoder/model.safetensors.index.json",
        *(f"tokenizer/{name}" for name in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")),
        "transformer/config.json",
        *(f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_the_published_layout_loads(original: ZImageBackbone, published: Path) -> None:
    loaded = ZImageBackbone.load(published)
    assert loaded.shift == 6.0
    noisy, t, reference = torch.randn(2, 4, 12, 20), torch.rand(2), torch.randn(2, 4, 12, 20)
    prompts = ["a red circle", "a longer prompt, of more than thirty-two tokens in all, to be sure"]
    with torch.no_grad():
        wanted, text = original.encode_text(prompts), loaded.encode_text(prompts)
        assert text.lengths == wanted.lengths
        assert torch.equal(text.features, wanted.features)
        expected = original.velocity(noisy, t, wanted, reference)
        assert torch.equal(loaded.velocity(noisy, t, text, reference), expected)
        assert torch.equal(loaded.decode_latents(noisy), original.decode_latents(noisy))


def test_so_does_the_stock_pipeline(original: ZImageBackbone, published: Path) -> None:
    pipeline = ZImagePipeline.from_pretrained(published, dtype=torch.float32)
    features = pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False)[0][0]
    torch.testing.assert_close(features, original.encode_text(["a red circle"]).features[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_shard_less_is_told(published: Path, part: str) -> None:
    sorted((published / part).glob("*-of-*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match=f"{part}: cannot load") as error:
        ZImageBackbone.load(published)
    assert "\n" not in str(error.value)


def test_so_is_an_index_that_names_too_little(published: Path) -> None:
    path = published / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    lost = next(name for name in index["weight_map"] if name.startswith("layers.1."))
    second = index["weight_map"][lost]
    kept = {name: file for name, file in index["weight_map"].items() if file != second}
    path.write_text(json.dumps({**index, "weight_map": kept}))
    with pytest.raises(ModelError, match="transformer: ") as error:
        ZImageBackbone.load(published)
    assert "\n" not in str(error.value)


def test_what_was_published_is_saved_as_our_own(original: ZImageBackbone, published: Path, tmp_path: Path) -> None:
    ZImageBackbone.load(published).save(tmp_path / "ours")
    shutil.rmtree(published)
    again = ZImageBackbone.load(tmp_path / "ours")
    state = again.transformer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in original.transformer.state_dict().items())
    assert torch.equal(again.encode_text(["a"]).features, original.encode_text(["a"]).features)


def test_the_published_size_builds_and_runs_without_memory(shared_backbone: ZImageBackbone) -> None:
    """6.15 billion in the transformer: the "6B" of the family. Qwen3-4B without a head of its own has 4.02."""
    with torch.device("meta"):
        full = dataclasses.replace(
            shared_backbone,
            vae=AutoencoderKL(**FULL_VAE),
            text_encoder=Qwen3Model(Qwen3Config(**FULL_TEXT)),
            transformer=ZImageTransformer2DModel(**FULL).to(torch.bfloat16),
        )
        counts = [sum(p.numel() for p in part.parameters()) for part in (full.transformer, full.text_encoder, full.vae)]
        shape = full.latent_shape(1024, 768)
        latents = torch.empty(2, *shape)
        assert full.encode_image(torch.empty(2, 3, 1024, 768)).shape == latents.shape
        assert full.decode_latents(latents).shape == (2, 3, 1024, 768)
    assert counts[0] == pytest.approx(6.15e9, rel=0.002)
    assert counts[1] == pytest.approx(4.02e9, rel=0.002)
    assert counts[2] == pytest.approx(83.8e6, rel=0.002)  # 168 MB in two bytes each
    assert (full.pixel_multiple, shape, full.max_tokens) == (16, (16, 128, 96), MAX_TOKENS)
    assert full.latent_shape(8192, 8192)[1:] == (1024, 1024)


def test_one_full_size_velocity_needs_no_memory_either(shared_backbone: ZImageBackbone) -> None:
    with torch.device("meta"):
        full = shared_backbone.with_transformer(ZImageTransformer2DModel(**FULL))
        latents = torch.empty(1, 16, 64, 64)
        text = Text(torch.empty(1, 40, 2560), (40,))
        for reference in (None, latents):
            assert full.velocity(latents, torch.empty(1), text, reference).shape == latents.shape
