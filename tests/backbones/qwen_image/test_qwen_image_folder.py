import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from safetensors.torch import load_file, save_file

from nopair.backbones.qwen_image import QwenImageBackbone
from nopair.errors import ModelError, OutputError


def _same(loaded: QwenImageBackbone, original: QwenImageBackbone) -> None:
    noisy, t, reference = torch.randn(2, 4, 8, 12), torch.rand(2), torch.randn(2, 4, 8, 12)
    prompts = ["a red circle", ""]
    with torch.no_grad():
        expected = original.velocity(noisy, t, original.encode_text(prompts), reference)
        assert torch.equal(loaded.velocity(noisy, t, loaded.encode_text(prompts), reference), expected)
        assert torch.equal(loaded.decode_latents(noisy), original.decode_latents(noisy))
    assert loaded.shift_for(512, 768, 4) == original.shift_for(512, 768, 4)


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_saved_model_loads_as_it_was(
    make: Callable[..., QwenImageBackbone], tmp_path: Path, zero_cond_t: bool
) -> None:
    original = make(zero_cond_t=zero_cond_t)
    original.save(tmp_path / "first")
    QwenImageBackbone.load(tmp_path / "first").save(tmp_path / "second")
    loaded = QwenImageBackbone.load(tmp_path / "second")
    _same(loaded, original)
    assert loaded.scheduler.config["shift_terminal"] == 0.02
    assert not any(p.requires_grad for module in (loaded.vae, loaded.text_encoder) for p in module.parameters())
    assert not any(module.training for module in (loaded.vae, loaded.text_encoder, loaded.transformer))
    assert not [path for path in (tmp_path / "second").rglob("*.json") if str(tmp_path) in path.read_text()]


def test_the_stock_pipeline_loads_what_is_saved(qwen: QwenImageBackbone, folder: Path) -> None:
    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert dict(pipeline.scheduler.config).items() >= {"shift_terminal": 0.02, "max_shift": 0.9}.items()
    of_parts = QwenImagePipeline(
        vae=qwen.vae,
        text_encoder=qwen.text_encoder,
        tokenizer=qwen.tokenizer,
        transformer=qwen.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(qwen.scheduler.config),
    )
    of_parts.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4 * 6, 16)
    images = [
        pipe("a cat", height=32, width=48, latents=latents.clone(), num_inference_steps=2, output_type="pt").images
        for pipe in (pipeline, of_parts)
    ]
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)  # kernels differ by where in memory weights happen to lie
    assert images[0].std() > 0.01


# --- the published layout -----------------------------------------------------------------------------------------


def _shard(path: Path, weights: dict[str, torch.Tensor], stem: str) -> None:
    """Three files and their index, as for models too large for one."""
    names, places = sorted(weights), {}
    for number in range(3):
        file = f"{stem}-{number + 1:05}-of-00003.safetensors"
        part = {name: weights[name].contiguous() for name in names[number::3]}
        save_file(part, path / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": places}
    (path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _old_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """As of transformers 4.5x: the language model's settings on the top level, rotary settings under older names."""
    text = config["text_config"]
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act")  # fmt: skip
    vision = {key: value for key, value in config["vision_config"].items() if key != "rope_parameters"}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{key: text[key] for key in keys},
        "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {**vision, "model_type": "qwen2_5_vl"},
    }


def _publish(folder: Path, qwen: QwenImageBackbone) -> None:
    """Turn a saved folder into the layout of Qwen/Qwen-Image: shards, older names, older configs."""
    for part, file in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for old in (folder / part).glob("*.safetensors*"):
            old.unlink()
        weights = dict(getattr(qwen, part).state_dict())
        if part == "text_encoder":
            weights = {
                name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
                for name, tensor in weights.items()
            }
        _shard(folder / part, weights, file)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps(_old_text_config(config)))
    _edit("transformer/config.json", pooled_projection_dim=768, _diffusers_version="0.34.0.dev0")(folder)
    path = folder / "transformer/config.json"
    settings = json.loads(path.read_text())
    for later in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        del settings[later]
    path.write_text(json.dumps(settings))


def test_the_published_layout_loads(qwen: QwenImageBackbone, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    _publish(copied, qwen)
    loaded = QwenImageBackbone.load(copied)
    _same(loaded, qwen)
    state = loaded.text_encoder.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in qwen.text_encoder.state_dict().items())
    for name in ("transformer", "text_encoder"):
        shard = sorted((copied / name).glob("*-of-*.safetensors"))[1]
        moved = shard.rename(tmp_path / "gone")
        with pytest.raises(ModelError, match=f"{name}: cannot load") as error:
            QwenImageBackbone.load(copied)
        assert "\n" not in str(error.value)
        moved.rename(shard)


# --- broken folders -----------------------------------------------------------------------------------------------


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
    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        del weights[tensor]
        save_file(weights, folder / name, metadata={"format": "pt"})

    return drop


def _other_vae(folder: Path) -> None:
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=2, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True])
    vae.save_pretrained(folder / "vae")


def _other_text_encoder(folder: Path) -> None:
    """A transformer for wider embeddings."""
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["txt_norm.weight"], weights["txt_in.weight"] = torch.ones(48), torch.randn(32, 48)
    save_file(weights, path, metadata={"format": "pt"})
    _edit("transformer/config.json", joint_attention_dim=48)(folder)


def _extra_condition(folder: Path) -> None:
    """As in the family's layered model."""
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["time_text_embed.addition_t_embedding.weight"] = torch.randn(2, 32)
    save_file(weights, path, metadata={"format": "pt"})
    _edit("transformer/config.json", use_additional_t_cond=True)(folder)


VAE, TRANSFORMER = "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
TEXT, CONFIG = "text_encoder/model.safetensors", "scheduler/scheduler_config.json"
BROKEN = {
    "gone": (_without("."), "no such model folder"),
    "no index": (_without("model_index.json"), "no model_index.json"),
    "other family": (_edit("model_index.json", _class_name="QwenImage21Pipeline"), "a QwenImagePipeline is needed"),
    "edit family": (_edit("model_index.json", _class_name="QwenImageEditPipeline"), "a QwenImagePipeline is needed"),
    "no part": (_without("vae"), "vae: no config.json"),
    "no weights": (_without(TRANSFORMER), "transformer: cannot load"),
    "cut weights": (_truncate(TRANSFORMER), "transformer: cannot load"),
    "cut VAE": (_truncate(VAE), "vae: cannot load"),
    "cut text encoder": (_truncate(TEXT), "text_encoder: cannot load"),
    "a tensor less": (_drop(TRANSFORMER, "proj_out.weight"), "transformer: .*proj_out"),
    "a tensor less in the VAE": (_drop(VAE, "post_quant_conv.weight"), "vae: .*post_quant_conv"),
    "weights of another size": (_edit("transformer/config.json", num_attention_heads=4), "transformer: cannot load"),
    "no tokenizer": (_without("tokenizer/tokenizer_config.json"), "tokenizer: no tokenizer_config.json"),
    "no vocabulary": (_without("tokenizer/tokenizer.json"), "tokenizer: no vocab.json"),
    "no scheduler": (_without("scheduler"), "no scheduler_config.json"),
    "bad scheduler": (lambda folder: (folder / CONFIG).write_text("{") and None, "cannot load the scheduler"),
    "constant shift": (_edit(CONFIG, use_dynamic_shifting=False), r"does not shift times by exp\(mu\)"),
    "linear shift": (_edit(CONFIG, time_shift_type="linear"), r"does not shift times by exp\(mu\)"),
    "unknown shift": (_edit(CONFIG, time_shift_type="cubic"), "cannot load the scheduler"),
    "other times": (_edit(CONFIG, num_train_timesteps=500), r"does not shift times by exp\(mu\)"),
    "inverted times": (_edit(CONFIG, invert_sigmas=True), r"does not shift times by exp\(mu\)"),
    "guidance embedding": (_edit("transformer/config.json", guidance_embeds=True), "guidance_embeds is not supported"),
    "layers": (_edit("transformer/config.json", use_layer3d_rope=True), "use_layer3d_rope is not supported"),
    "an extra condition": (_extra_condition, "use_additional_t_cond is not supported"),
    "another VAE": (_other_vae, "tokens of 8 numbers, the transformer takes 16"),
    "another text encoder": (_other_text_encoder, "embeddings of 32 numbers, the transformer takes 48"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_one_clear_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    damage(copied)
    with pytest.raises(ModelError, match=message) as error:
        QwenImageBackbone.load(copied)
    assert "\n" not in str(error.value)
    assert str(copied) in str(error.value)


def test_a_text_encoder_with_a_tensor_less_is_refused(folder: Path, tmp_path: Path) -> None:
    for tensor in load_file(folder / TEXT):
        if tensor.endswith(("embed_tokens.weight", "layers.1.mlp.up_proj.weight")):
            copied = shutil.copytree(folder, tmp_path / tensor)
            _drop(TEXT, tensor)(copied)
            with pytest.raises(ModelError, match=r"text_encoder: .*missing"):
                QwenImageBackbone.load(copied)
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_onto_a_file_is_refused(qwen: QwenImageBackbone, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        qwen.save(path)
    with pytest.raises(OutputError, match="cannot write"):
        qwen.save(path / "below")


def test_a_backbone_cannot_be_changed(qwen: QwenImageBackbone) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        qwen.scheduler = None  # pyright: ignore
