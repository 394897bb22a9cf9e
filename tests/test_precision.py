"""Weights in few bits: when they can be had, and what the libraries are told."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import ZImageTransformer2DModel
from transformers import Qwen3Model

from nopair import precision as precision_module
from nopair.backbones.folder import NEVER_QUANTISED, load_model
from nopair.backbones.load import load_backbone
from nopair.config import JudgeConfig, load_recipe
from nopair.errors import ConfigError, MissingExtraError, ModelError
from nopair.judges.load import load_judge
from nopair.planning.architecture import architecture
from nopair.planning.bases import shape_backbone
from nopair.planning.judges import shape_judge
from nopair.precision import Bits, Precision, quantisation, refuse_quantised, require_bitsandbytes
from nopair.training.run import compose, compose_teacher
from nopair.weights import resolve


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes and a GPU were there. The libraries' configs look up its version."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.50.2" if name == "bitsandbytes" else version(name)
    )
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


def test_what_is_missing_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes .*pip install 'nopair\[quant\]'"):
        require_bitsandbytes()
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = r"^a thing in 4 bits needs a CUDA GPU; set bits to null{} on this machine$"
    for on_cpu, more in (((), ""), ((8,), " or 8")):
        with pytest.raises(ModelError, match=told.format(more)):
            quantisation(transformers.BitsAndBytesConfig, Precision(bits=4), (), "a thing", on_cpu)


def test_weights_that_are_quantised_already_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^a thing is quantised already \(by awq\); take the checkpoint with whole"):
        refuse_quantised({"quantization_config": {"quant_method": "awq"}}, "a thing")
    with pytest.raises(ModelError, match="by unknown"):
        refuse_quantised({"quantization_config": 4}, "a thing")
    for whole in ({}, {"quantization_config": None}, [], None):
        refuse_quantised(whole, "a thing")


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_base_with_quantised_weights_gets_one_line(tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(resolve("tiny:base"), tmp_path / "base")
    _mark_quantised(folder / part / "config.json")
    for load in (load_backbone, lambda path: shape_backbone(architecture(str(path)), torch.float32, None)):
        with pytest.raises(ModelError, match="quantised already") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_a_judge_with_quantised_weights_gets_one_line(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("tiny:judge-32"), tmp_path / "judge")
    _mark_quantised(folder / "config.json")
    config = JudgeConfig(path=str(folder))
    for load in (load_judge, lambda path: shape_judge(architecture(str(path)), config)):
        with pytest.raises(ModelError, match="quantised already"):
            load(folder)


def _mark_quantised(path: Path) -> None:
    marks = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | marks))


@pytest.mark.parametrize("key", ["base.bits", "judge.bits"])
def test_bits_beside_the_gpu_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str) -> None:
    """They would be quantised on the GPU, and moved from there."""
    recipe = load_recipe("demo", [f"output={tmp_path}", f"{key}=8", "base.roles=lora"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=f"{key} 8 quantises on the GPU here, and the device is cpu"):
        compose(recipe, "cpu")
    if key == "base.bits":
        with pytest.raises(ConfigError, match=key):
            compose_teacher(recipe, "cpu", 1)


@pytest.mark.usefixtures("equipped")
@pytest.mark.parametrize("library", [diffusers.BitsAndBytesConfig, transformers.BitsAndBytesConfig])
@pytest.mark.parametrize("bits", [4, 8])
def test_both_libraries_are_told_the_same(library: Any, bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    told = quantisation(library, Precision(torch.bfloat16, bits), ("head",), "a model", ())
    assert told["device_map"] == {"": 3}
    config = told["quantization_config"]
    assert isinstance(config, library)
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    assert config.quantization_method() == ("nf4" if bits == 4 else "llm_int8")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.bnb_4bit_use_double_quant
    assert config.llm_int8_skip_modules == ["head"]
    assert quantisation(library, Precision(torch.bfloat16), ("head",), "a model", ()) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert quantisation(library, Precision(bits=bits), (), "a model", (4, 8))["device_map"] == {"": "cpu"}


@pytest.mark.usefixtures("equipped")
@pytest.mark.parametrize(
    ("kind", "part", "library"),
    [
        (ZImageTransformer2DModel, "transformer", diffusers.BitsAndBytesConfig),
        (Qwen3Model, "text_encoder", transformers.BitsAndBytesConfig),
    ],
)
def test_parts_of_a_base_are_quantised_by_their_own_library(
    kind: Any, part: str, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def capture(_folder: str, **options: Any) -> None:
        told.update(options)
        raise OSError("far enough")

    monkeypatch.setattr(kind, "from_pretrained", capture)
    folder = resolve("tiny:base") / part
    with pytest.raises(ModelError, match="far enough"):
        load_model(kind, folder, torch.bfloat16, 4)
    assert isinstance(told["quantization_config"], library)
    assert told["quantization_config"].llm_int8_skip_modules == list(NEVER_QUANTISED)
    told.clear()
    with pytest.raises(ModelError, match="far enough"):
        load_model(kind, folder, torch.bfloat16)
    assert not told.keys() & {"quantization_config", "device_map"}


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available(),
    reason="needs bitsandbytes (the extra `quant`) and a CUDA GPU",
)
@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_are_packed_and_the_output_is_not(bits: Bits) -> None:
    transformer = load_model(ZImageTransformer2DModel, resolve("tiny:base") / "transformer", torch.bfloat16, bits)
    kinds = {name: type(module).__name__ for name, module in transformer.named_modules()}
    packed = {name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert any(name.startswith("layers.") for name in packed)
    assert not any(name.startswith("all_final_layer") for name in packed)
    assert transformer.get_parameter("x_pad_token").dtype == torch.bfloat16
