"""An adapter alone, in the file that stock diffusers loads. Each family has its own test of that beside its others."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from safetensors import safe_open
from torch import Tensor

from nopair.backbones.adapters import FILE, save_adapter
from nopair.backbones.zimage import ZImageBackbone
from nopair.errors import OutputError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")
QUERY = "layers.0.attention.to_q"
RANKS = {QUERY: 2, "layers.1.attention.to_q": 4, "layers.1.feed_forward.w2": 1}
SCALE = 1.5


def _weights(backbone: ZImageBackbone) -> dict[str, Tensor]:
    """One adapter of many ranks."""
    weights = {}
    for name, rank in RANKS.items():
        full = backbone.transformer.get_submodule(name).get_parameter("weight")
        weights[f"{name}.lora_A.weight"] = 0.3 * torch.randn(rank, full.shape[1])
        weights[f"{name}.lora_B.weight"] = 0.3 * torch.randn(full.shape[0], rank)
    return weights


def test_stock_z_image_loads_it_as_the_merged_export(
    backbone: ZImageBackbone, check_adapter: Callable[..., Any]
) -> None:
    check_adapter(backbone, ZImagePipeline, TARGETS, 4)


def test_each_module_has_a_rank_of_its_own_and_one_scale(backbone: ZImageBackbone, tmp_path: Path) -> None:
    backbone.save(tmp_path / "base")
    weights = _weights(backbone)
    save_adapter(weights, SCALE, tmp_path / "adapter")
    stock = ZImagePipeline.from_pretrained(tmp_path / "base")
    stock.load_lora_weights(tmp_path / "adapter")
    merged = copy.deepcopy(backbone.transformer)
    noisy, t, text = torch.randn(1, 4, 8, 8), torch.tensor([0.6]), backbone.encode_text(["a red circle"])
    with torch.no_grad():
        for name in RANKS:
            product = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
            merged.get_submodule(name).get_parameter("weight").add_(SCALE * product)
        wanted = backbone.with_transformer(merged).velocity(noisy, t, text)
        loaded = backbone.with_transformer(stock.transformer).velocity(noisy, t, text)
        assert (wanted - backbone.velocity(noisy, t, text)).abs().max() > 0.01
    torch.testing.assert_close(loaded, wanted, atol=2e-5, rtol=1e-4)


def test_the_file_is_as_diffusers_writes_it(backbone: ZImageBackbone, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in _weights(backbone).items()}
    save_adapter(weights, SCALE, tmp_path / "new" / "adapter")
    assert [path.name for path in (tmp_path / "new" / "adapter").iterdir()] == [FILE]
    with safe_open(tmp_path / "new" / "adapter" / FILE, "pt") as file:
        assert set(file.keys()) == {f"transformer.{name}" for name in weights}
        assert all(torch.equal(file.get_tensor(f"transformer.{name}"), tensor) for name, tensor in weights.items())
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings == {
        "transformer.alpha_pattern": {"^layers.1.attention.to_q": 6.0, "^layers.1.feed_forward.w2": 1.5},
        "transformer.lora_alpha": 3.0,
        "transformer.r": 2,
        "transformer.rank_pattern": {"^layers.1.attention.to_q": 4, "^layers.1.feed_forward.w2": 1},
        "transformer.target_modules": sorted(RANKS),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: {}, "not an adapter"),
        (lambda weights: dict(list(weights.items())[1:]), "not an adapter"),
        (lambda weights: {**weights, "layers.0.bias": torch.zeros(1)}, "not an adapter"),
        (
            lambda weights: {**weights, "layers.0.attention.to_q.lora_A.weight": torch.zeros(3, 64)},
            "rank 3, B has rank 2",
        ),
    ],
    ids=["nothing", "half", "more", "ranks"],
)
def test_what_is_no_adapter_is_refused(
    shared_backbone: ZImageBackbone, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        save_adapter(change(_weights(shared_backbone)), SCALE, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_place_that_cannot_be_written_is_told(shared_backbone: ZImageBackbone, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        save_adapter(_weights(shared_backbone), SCALE, tmp_path / "taken")
    with pytest.raises(OutputError, match="cannot write the adapter"):
        save_adapter(_weights(shared_backbone), SCALE, tmp_path / "taken" / "below")
