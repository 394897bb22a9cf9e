import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from nopair.backbones.flux2 import Flux2KleinBackbone
from nopair.errors import ModelError, OutputError


def _same(loaded: Flux2KleinBackbone, original: Flux2KleinBackbone) -> None:
    noisy, t, reference = torch.randn(2, 16, 8, 12), torch.rand(2), torch.randn(2, 16, 8, 12)
    prompts = ["a red circle", ""]
    with torch.no_grad():
        expected = original.velocity(noisy, t, original.encode_text(prompts), reference)
        assert torch.equal(loaded.velocity(noisy, t, loaded.encode_text(prompts), reference), expected)
        assert torch.equal(loaded.decode_latents(noisy), original.decode_latents(noisy))


@pytest.mark.parametrize("distilled", [False, True])
def test_a_saved_model_loads_as_it_was(klein: Flux2KleinBackbone, tmp_path: Path, distilled: bool) -> None:
    dataclasses.replace(klein, is_distilled=distilled).save(tmp_path / "first")
    Flux2KleinBackbone.load(tmp_path / "first").save(tmp_path / "second")
    loaded = Flux2KleinBackbone.load(tmp_path / "second")
    _same(loaded, klein)
    assert loaded.is_distilled == distilled
    assert loaded.scheduler.config["use_dynamic_shifting"]
    assert not any(p.requires_grad for module in (loaded.vae, loaded.text_encoder) for p in module.parameters())
    assert not [path for path in (tmp_path / "second").rglob("*.json") if str(tmp_path) in path.read_text()]


def _shard(folder: Path, klein: Flux2KleinBackbone) -> None:
    for name, part in (("transformer", klein.transformer), ("text_encoder", klein.text_encoder), ("vae", klein.vae)):
        shutil.rmtree(folder / name)
        part.save_pretrained(folder / name, max_shard_size="16KB")
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 2


def test_sharded_weights_load(klein: Flux2KleinBackbone, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    _shard(copied, klein)
    _same(Flux2KleinBackbone.load(copied), klein)
    for name in ("transformer", "text_encoder"):
        shard = sorted((copied / name).glob("*-of-*.safetensors"))[1]
        moved = shard.rename(tmp_path / "gone")
        with pytest.raises(ModelError, match=f"{name}: cannot load") as error:
            Flux2KleinBackbone.load(copied)
        assert "\n" not in str(error.value)
        moved.rename(shard)


def test_the_published_layout_loads(
    klein: Flux2KleinBackbone,
    folder: Path,
    shard: Callable[[Path, dict[str, Tensor], str, int], None],
    qwen3_config: Callable[[Qwen3Config], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Like black-forest-labs/FLUX.2-klein-base-4B: the text encoder in two files, without a head (it is the embedding),
    its config in the words of its day; the tokenizer with its vocabulary twice.
    """
    copied = shutil.copytree(folder, tmp_path / "copy")
    weights = {name: value for name, value in klein.text_encoder.state_dict().items() if name != "lm_head.weight"}
    shard(copied / "text_encoder", weights, "model", 2)
    (copied / "text_encoder/config.json").write_text(json.dumps(qwen3_config(klein.text_encoder.config)))
    tokenizer = copied / "tokenizer"
    whole = json.loads((tokenizer / "tokenizer.json").read_text())
    (tokenizer / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    loaded = Flux2KleinBackbone.load(copied)
    _same(loaded, klein)
    state = loaded.text_encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in klein.text_encoder.state_dict().items())


def _without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _edit(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000]) and None


def _drop(name: str, tensor: str) -> Callable[[Path], None]:
    from safetensors.torch import load_file, save_file

    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        del weights[tensor]
        save_file(weights, folder / name, metadata={"format": "pt"})

    return drop


def _replace(name: str, part: Callable[[], torch.nn.Module]) -> Callable[[Path], None]:
    return lambda folder: part().save_pretrained(folder / name)  # pyright: ignore


def _text_encoder(**values: int) -> Qwen3ForCausalLM:
    small = {"vocab_size": 300, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**{**small, "num_key_value_heads": 1, "head_dim": 8, **values}))


VAE, TRANSFORMER = "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "scheduler/scheduler_config.json"
BROKEN = {
    "gone": (_without("."), "no such model folder"),
    "no index": (_without("model_index.json"), "no model_index.json"),
    "other family": (_edit("model_index.json", _class_name="Flux2Pipeline"), "a Flux2KleinPipeline is needed"),
    "no part": (_without("vae"), "vae: no config.json"),
    "no weights": (_without(TRANSFORMER), "transformer: cannot load"),
    "cut weights": (_truncate(TRANSFORMER), "transformer: cannot load"),
    "cut text encoder": (_truncate("text_encoder/model.safetensors"), "text_encoder: cannot load"),
    "a tensor less": (_drop(TRANSFORMER, "proj_out.weight"), "transformer: .*proj_out"),
    "no latent statistics": (_drop(VAE, "bn.running_var"), "vae: .*bn.running_var"),
    "no word embedding": (
        _drop("text_encoder/model.safetensors", "model.embed_tokens.weight"), "text_encoder: .*missing"
    ),
    "weights of another size": (_edit("transformer/config.json", num_attention_heads=4), "transformer: cannot load"),
    "no tokenizer": (_without("tokenizer/tokenizer_config.json"), "tokenizer: no tokenizer_config.json"),
    "no chat template": (_without("tokenizer/chat_template.jinja"), "no chat template"),
    "no scheduler": (_without("scheduler"), "no scheduler_config.json"),
    "bad scheduler": (lambda folder: (folder / CONFIG).write_text("{") and None, "cannot load the scheduler"),
    "constant shift": (_edit(CONFIG, use_dynamic_shifting=False), r"does not shift times by exp\(mu\)"),
    "linear shift": (_edit(CONFIG, time_shift_type="linear"), r"does not shift times by exp\(mu\)"),
    "stretched shift": (_edit(CONFIG, shift_terminal=0.02), r"does not shift times by exp\(mu\)"),
    "other sigmas": (_edit(CONFIG, use_karras_sigmas=True), r"does not shift times by exp\(mu\)"),
    "other times": (_edit(CONFIG, num_train_timesteps=500), r"does not shift times by exp\(mu\)"),
    "a wider text encoder": (
        _replace("text_encoder", lambda: _text_encoder(num_hidden_layers=28, hidden_size=16)),
        "embeddings of 48 numbers, the transformer takes 24",
    ),
    "a shallow text encoder": (
        _replace("text_encoder", lambda: _text_encoder(num_hidden_layers=26)), "has 26 layers, at least 27 are needed"
    ),
    "a wider VAE": (
        _replace("vae", lambda: AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=8)),
        "latents of 32 channels, the transformer takes 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_one_clear_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    damage(copied)
    with pytest.raises(ModelError, match=message) as error:
        Flux2KleinBackbone.load(copied)
    assert "\n" not in str(error.value)
    assert str(copied) in str(error.value)


def test_saving_onto_a_file_is_refused(klein: Flux2KleinBackbone, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        klein.save(path)
    with pytest.raises(OutputError, match="cannot write"):
        klein.save(path / "below")


def test_a_backbone_cannot_be_changed(klein: Flux2KleinBackbone) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        klein.is_distilled = True  # pyright: ignore
