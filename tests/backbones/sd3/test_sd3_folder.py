import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from nopair.backbones.sd3 import StableDiffusion3Backbone
from nopair.errors import ModelError, OutputError


def _predict(backbone: StableDiffusion3Backbone, referenced: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, reference = torch.randn(2, 2, 4, 12, 16, generator=generator)
    text = backbone.encode_text(["a red circle", ""])
    with torch.no_grad():
        return backbone.velocity(noisy, torch.tensor([0.3, 0.9]), text, reference if referenced else None)


# --- round trips --------------------------------------------------------------------------------------------------


def test_a_saved_model_loads_as_it_was_reference_included(
    awake: StableDiffusion3Backbone, folder: Path, tmp_path: Path
) -> None:
    StableDiffusion3Backbone.load(folder).save(tmp_path)
    loaded = StableDiffusion3Backbone.load(tmp_path)
    assert loaded.shift == awake.shift
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(_predict(loaded), _predict(awake))
        assert torch.equal(loaded.decode_latents(latents), awake.decode_latents(latents))
    assert not torch.equal(_predict(loaded), _predict(loaded, referenced=False))
    codecs = (loaded.vae, loaded.text_encoder, loaded.text_encoder_2, loaded.text_encoder_3)
    for codec in codecs:
        assert codec is not None
        assert not any(parameter.requires_grad for parameter in codec.parameters())
    modules = [module for part in (*codecs, loaded.transformer) if part is not None for module in part.modules()]
    assert not any(module.training for module in modules)
    origins = str(folder), str(tmp_path)
    assert not [path for path in tmp_path.rglob("*.json") if any(origin in path.read_text() for origin in origins)]


def test_a_saved_model_is_the_stock_librarys(awake: StableDiffusion3Backbone, folder: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    assert type(pipeline.transformer) is SD3Transformer2DModel
    text = awake.encode_text(["a red circle", ""])
    noisy, t, reference = torch.randn(2, 4, 12, 16), torch.rand(2), torch.randn(2, 4, 12, 16)
    with torch.no_grad():
        # All that it takes to give it a reference.
        images = torch.cat([noisy, reference], dim=1)
        v = pipeline.transformer(images, text.features, text.pooled, 1000 * t).sample
        assert torch.equal(v, awake.velocity(noisy, t, text, reference))


def test_the_published_layout_is_sharded_and_loads(published: Path, fresh: StableDiffusion3Backbone) -> None:
    for part in ("transformer", "vae", "text_encoder_3"):
        assert len(list((published / part).glob("*-of-*.safetensors"))) > 1
    assert not (published / "tokenizer" / "tokenizer.json").exists()
    stock = StableDiffusion3Pipeline.from_pretrained(published)
    for mine, theirs in ((fresh.transformer, stock.transformer), (fresh.text_encoder_3, stock.text_encoder_3)):
        assert mine is not None
        for name, tensor in mine.state_dict().items():
            if name == "pos_embed.proj.weight":
                assert torch.count_nonzero(tensor[:, 4:]) == 0
                tensor = tensor[:, :4]
            assert torch.equal(tensor, theirs.state_dict()[name])


def test_without_t5_a_model_loads_as_it_was(
    make_pipeline: Callable[[bool], StableDiffusion3Pipeline], tmp_path: Path
) -> None:
    make_pipeline(False).save_pretrained(tmp_path / "stock")
    first = StableDiffusion3Backbone.load(tmp_path / "stock")
    first.save(tmp_path / "mine")
    second = StableDiffusion3Backbone.load(tmp_path / "mine")
    assert second.text_encoder_3 is None
    assert torch.equal(_predict(second), _predict(first))
    assert torch.count_nonzero(second.encode_text(["a red circle"]).features[:, 24:]) == 0
    stock = StableDiffusion3Pipeline.from_pretrained(tmp_path / "mine", text_encoder_3=None, tokenizer_3=None)
    assert torch.equal(stock.transformer.proj_out.weight, first.transformer.proj_out.weight)


def test_t5_can_be_struck_from_the_index(published: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(published, tmp_path / "copy")
    _edit("model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])(copied)
    shutil.rmtree(copied / "text_encoder_3")
    backbone = StableDiffusion3Backbone.load(copied)
    stock = StableDiffusion3Pipeline.from_pretrained(copied, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        features = stock.encode_prompt("a cat", None, None, do_classifier_free_guidance=False)[0]
        assert torch.equal(backbone.encode_text(["a cat"]).features, features)


def test_moving_takes_all_parts(backbone: StableDiffusion3Backbone) -> None:
    assert backbone.to("meta") is backbone
    parts = (backbone.vae, backbone.text_encoder, backbone.text_encoder_2, backbone.text_encoder_3)
    for part in (*parts, backbone.transformer):
        assert part is not None
        assert part.device.type == "meta"
    no_t5 = dataclasses.replace(backbone, text_encoder_3=None, tokenizer_3=None)
    assert no_t5.to("meta") is no_t5


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


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _drop_a_tensor(name: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        weights.pop(sorted(weights)[0])
        save_file(weights, folder / name, metadata={"format": "pt"})

    return drop


def _lose_a_shard(part: str) -> Callable[[Path], None]:
    return lambda folder: sorted((folder / part).glob("*-of-*.safetensors"))[1].unlink()


def _rebuild(**changes: object) -> Callable[[Path], None]:
    """Another transformer, sound in itself."""

    def rebuild(folder: Path) -> None:
        config = SD3Transformer2DModel.load_config(folder / "transformer")
        shutil.rmtree(folder / "transformer")
        SD3Transformer2DModel.from_config({**config, **changes}).save_pretrained(folder / "transformer")

    return rebuild


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BROKEN = {
    "gone": (_without("."), "no such model folder"),
    "no index": (_without("model_index.json"), "no model_index.json"),
    "bad index": (_write("model_index.json", "{"), "cannot be read"),
    "other family": (_edit("model_index.json", _class_name="FluxPipeline"), "a StableDiffusion3Pipeline is needed"),
    "no vae": (_without("vae"), "vae: no config.json"),
    "no clip": (_without("text_encoder_2"), "text_encoder_2: no config.json"),
    "no t5, yet named": (_without("text_encoder_3"), "text_encoder_3: no config.json"),
    "no t5 tokenizer": (_without("tokenizer_3"), "tokenizer_3: no tokenizer_config.json"),
    "no weights": (_without(WEIGHTS), "transformer: cannot load"),
    "cut weights": (_truncate(WEIGHTS), "transformer: cannot load"),
    "cut clip": (_truncate("text_encoder/model.safetensors"), "text_encoder: cannot load"),
    "cut t5": (_truncate("text_encoder_3/model.safetensors"), "text_encoder_3: cannot load"),
    "a tensor less": (_drop_a_tensor(WEIGHTS), "1 weights are missing"),
    "a tensor less in clip": (_drop_a_tensor("text_encoder_2/model.safetensors"), "text_encoder_2: 1 weights"),
    "weights of another size": (_edit("transformer/config.json", num_attention_heads=4), "transformer: cannot load"),
    "inpainting": (_rebuild(in_channels=9), r"takes 9 channels, neither text-to-image \(4\)"),
    "another vae's": (_rebuild(in_channels=6, out_channels=6), "makes latents of 6 channels, the vae of 4"),
    "another clip's": (_rebuild(pooled_projection_dim=24), "takes 32 and 24 numbers of text"),
    "another t5's": (_rebuild(joint_attention_dim=48), "takes text of 48 numbers, text_encoder_3 gives 32"),
    "no tokenizer": (_without("tokenizer/tokenizer_config.json"), "tokenizer: no tokenizer_config.json"),
    "no vocabulary": (_without("tokenizer_2/tokenizer.json"), "tokenizer_2: no vocab.json"),
    "no t5 vocabulary": (_without("tokenizer_3/tokenizer.json"), "tokenizer_3: no tokenizer.json"),
    "bad vocabulary": (_truncate("tokenizer/tokenizer.json"), "tokenizer: cannot load"),
    "no scheduler": (_without("scheduler"), "no scheduler_config.json"),
    "dynamic shift": (_edit("scheduler/scheduler_config.json", use_dynamic_shifting=True), "dynamic shifting"),
}
PUBLISHED = {
    "no merges": (_without("tokenizer/merges.txt"), "tokenizer: no merges.txt"),
    "cut published vocabulary": (_truncate("tokenizer/vocab.json"), "tokenizer: cannot load"),
    "cut merges": (_write("tokenizer_2/merges.txt", "#version: 0.2\nr e\nr"), "tokenizer_2: cannot load"),
    "other merges": (
        _write("tokenizer/merges.txt", "#version: 0.2\nq u"),
        "tokenizer: cannot load .*out of vocabulary",
    ),
    "lost shard": (_lose_a_shard("transformer"), "transformer: cannot load"),
    "lost t5 shard": (_lose_a_shard("text_encoder_3"), "text_encoder_3: cannot load"),
}


def _refuses(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        StableDiffusion3Backbone.load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_one_clear_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    _refuses(shutil.copytree(folder, tmp_path / "copy"), damage, message)


@pytest.mark.parametrize(("damage", "message"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_so_is_a_broken_folder_of_the_published_layout(
    published: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    _refuses(shutil.copytree(published, tmp_path / "copy"), damage, message)


def test_saving_onto_a_file_is_refused(fresh: StableDiffusion3Backbone, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        fresh.save(path)
    with pytest.raises(OutputError, match="cannot write"):
        fresh.save(path / "below")
