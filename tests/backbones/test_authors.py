"""The checkpoint that the authors of NP-Edit publish, in small: a flat mapping of tensors written by torch.save."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from nopair.backbones.authors import SHIFT, STEPS, read_student
from nopair.backbones.zimage import ZImageBackbone
from nopair.errors import ModelError
from nopair.method.flow import levels


class ZImageDenoiser(nn.Module):
    """What the authors' module is to its state: something around a transformer of that name."""

    def __init__(self, transformer: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer


@pytest.fixture(scope="module")
def base(shared_backbone: ZImageBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authors") / "base"
    shared_backbone.save(path)
    return path


@pytest.fixture(scope="module")
def student(shared_backbone: ZImageBackbone) -> ZImageTransformer2DModel:
    """Of the base's configuration, with other weights, in bfloat16 as published."""
    torch.manual_seed(5)
    config = {key: value for key, value in shared_backbone.transformer.config.items() if not key.startswith("_")}
    return ZImageTransformer2DModel(**config).eval().bfloat16()


@pytest.fixture(scope="module")
def state(student: ZImageTransformer2DModel) -> dict[str, Tensor]:
    return dict(ZImageDenoiser(student).state_dict())


@pytest.fixture
def checkpoint(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "zimage_npedit_internvl.pt"
    torch.save(state, path)
    return path


def test_their_levels_are_four_shifted_by_six() -> None:
    """`timesteps` in their scripts/edit.py, with four places."""
    torch.testing.assert_close(levels(STEPS, SHIFT), torch.tensor([1.0, 0.9474, 0.8571, 0.6667]), atol=5e-5, rtol=0)


def test_every_weight_is_read_as_it_is(checkpoint: Path, base: Path, student: ZImageTransformer2DModel) -> None:
    read = read_student(checkpoint, base)
    wanted = student.state_dict()
    assert read.state_dict().keys() == wanted.keys()
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, wanted[name])
    assert not read.training
    noisy, prompt = torch.randn(4, 1, 8, 8).bfloat16(), torch.randn(5, 32).bfloat16()
    with torch.no_grad():
        both = [model([noisy], torch.tensor([0.3]), [prompt], return_dict=False)[0][0] for model in (read, student)]
    assert torch.equal(*both)


def test_reading_does_not_need_the_bases_own_weights(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "base")
    for weights in copied.rglob("*.safetensors"):
        weights.unlink()
    read_student(checkpoint, copied)


# --- other layouts ------------------------------------------------------------------------------------------------

Content = Callable[[dict[str, Tensor]], Any]


def _renamed(old: str, new: str) -> Content:
    return lambda state: {name.replace(old, new, 1): tensor for name, tensor in state.items()}


def _changed(name: str, tensor: Tensor | None) -> Content:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {key: value for key, value in state.items() if key != name}
        return rest if tensor is None else {**rest, name: tensor}

    return change


PAD = "transformer.x_pad_token"
LAYOUTS: dict[str, tuple[Content, str]] = {
    "no prefix": (_renamed("transformer.", ""), "names of another layout, all_final_layer.2-1"),
    "module": (_renamed("", "module."), "names of another layout, module.transformer."),
    "adapter": (_renamed("", "base_model.model."), "names of another layout, base_model.model."),
    "nested": (lambda state: {"model": state, "ema": state, "step": 3}, "holds model, ema, step, but only tensors"),
    "empty": (lambda state: {}, "holds nothing"),
    "list": (lambda state: list(state.values()), "holds a list"),
    "tensor": (lambda state: state[PAD], "holds a Tensor"),
    "one less": (_changed(PAD, None), f"1 weights are missing and 0 unknown; {PAD} is missing"),
    "one more": (
        _changed("transformer.extra", torch.zeros(1)),
        "0 weights are missing and 1 unknown; transformer.extra",
    ),
    "other shape": (
        _changed(PAD, torch.zeros(1, 65)),
        r"x_pad_token has the shape \(1, 65\), this base needs \(1, 64\)",
    ),
    "objects": (lambda state: {"config": Path("x"), **state}, "holds more than tensors, which is not read"),
}


@pytest.mark.parametrize(("content", "said"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_another_layout_is_told_with_what_was_found(
    state: dict[str, Tensor], base: Path, tmp_path: Path, content: Content, said: str
) -> None:
    path = tmp_path / "other.pt"
    torch.save(content(state), path)
    with pytest.raises(ModelError, match=said) as error:
        read_student(path, base)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "other.pt: "),
        (b"not a checkpoint", "other.pt: "),
        (b"PK\x03\x04" + b"\0" * 100, "other.pt: "),
    ],
    ids=["gone", "empty", "text", "broken"],
)
def test_so_is_a_file_that_is_none(base: Path, tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "other.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as error:
        read_student(path, base)
    assert "\n" not in str(error.value)


def test_so_is_a_file_that_was_cut_or_is_of_the_old_format(
    checkpoint: Path, state: dict[str, Tensor], base: Path
) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read") as cut:
        read_student(checkpoint, base)
    torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="cannot be read") as old:
        read_student(checkpoint, base)
    assert all("\n" not in str(error.value) for error in (cut, old))


def test_so_is_another_base(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "base")
    config = copied / "transformer/config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "n_layers": 3}))
    with pytest.raises(ModelError, match=r"15 weights are missing and 0 unknown; transformer\.layers\.2"):
        read_student(checkpoint, copied)
    config.write_text("{")
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        read_student(checkpoint, copied)
    index = copied / "model_index.json"
    index.write_text(index.read_text().replace("ZImagePipeline", "FluxPipeline"))
    with pytest.raises(ModelError, match="holds a FluxPipeline"):
        read_student(checkpoint, copied)
