"""Editors in and out, whole: with the tiny models that come with the package."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from nopair.backbones.zimage import ZImageBackbone
from nopair.backbones.zimage_reference import Dialect
from nopair.editor import SETTINGS_FILE, Editor
from nopair.errors import ModelError, OutputError
from nopair.exchange import export_editor, import_editor
from nopair.weights import packaged

BASE = packaged() / "base"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a student of the tiny base, as the authors would publish it."""
    config = ZImageTransformer2DModel.load_config(str(BASE / "transformer"))
    torch.manual_seed(3)
    student = ZImageTransformer2DModel.from_config(config)
    return {f"transformer.{name}": tensor for name, tensor in student.state_dict().items()}


@pytest.fixture
def checkpoint(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "student.pt"
    torch.save({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    return path


def test_the_authors_student_becomes_an_editor(checkpoint: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    import_editor(checkpoint, BASE, tmp_path / "editor", "fp32")
    assert json.loads((tmp_path / "editor" / SETTINGS_FILE).read_text()) == {
        "steps": 4,
        "shift": 6.0,
        "height": 512,
        "width": 512,
        "questions": "npedit",
        "judges": [],
    }
    editor, base = Editor.load(tmp_path / "editor"), ZImageBackbone.load(BASE)
    torch.testing.assert_close(editor.levels, torch.tensor([1.0, 0.9474, 0.8571, 0.6667]), atol=5e-5, rtol=0)
    assert isinstance(editor.backbone, ZImageBackbone)
    assert editor.backbone.dialect == Dialect(reference="frames", thinking=False)
    for name, tensor in editor.backbone.transformer.state_dict().items():
        assert torch.equal(tensor, weights[f"transformer.{name}"].bfloat16().float())
    for part in ("vae", "text_encoder"):
        state = getattr(editor.backbone, part).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in getattr(base, part).state_dict().items())
    stored = list((tmp_path / "editor").rglob("*.json"))
    assert not [path for path in stored if str(tmp_path) in path.read_text() or str(BASE) in path.read_text()]


def test_it_edits(checkpoint: Path, tmp_path: Path) -> None:
    """At a smaller size: 512 pixels are many for a test."""
    import_editor(checkpoint, BASE, tmp_path / "editor", "bf16")
    settings = tmp_path / "editor" / SETTINGS_FILE
    settings.write_text(settings.read_text().replace("512", "64"))
    editor = Editor.load(tmp_path / "editor")
    photos = torch.rand(2, 3, 64, 64)
    edited = editor.edit(photos, ["make the circle red", "remove the square"], [0, 1])
    assert edited.shape == photos.shape
    assert edited.isfinite().all()


def test_what_cannot_be_imported_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        import_editor(checkpoint, tmp_path / "no", tmp_path / "editor", "bf16")
    torch.save({"a": torch.zeros(1)}, checkpoint)
    with pytest.raises(ModelError, match="names of another layout, a first"):
        import_editor(checkpoint, BASE, tmp_path / "editor", "bf16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.pt"]


# --- out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_copy_is_an_editor_in_another_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    export_editor("tiny:editor", tmp_path / "copy", precision)
    original, copy = Editor.load("tiny:editor"), Editor.load(tmp_path / "copy")
    assert copy.settings == original.settings
    stock = ZImagePipeline.from_pretrained(tmp_path / "copy", dtype=dtype)
    scheduler = stock.scheduler
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert scheduler.config["stochastic_sampling"]
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(scheduler.sigmas[:-1], original.levels, atol=1e-6, rtol=0)
    wanted = original.backbone.transformer.state_dict()
    for name, tensor in stock.transformer.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wanted[name].to(dtype))


def test_a_copy_may_replace_a_copy_but_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "photo.png").write_text("")
    with pytest.raises(OutputError, match="holds other files"):
        export_editor("tiny:editor", tmp_path / "copy", "bf16")
    (tmp_path / "copy" / "photo.png").unlink()
    for _ in range(2):
        export_editor("tiny:editor", tmp_path / "copy", "bf16")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_base_is_no_editor_to_export(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no nopair\.json"):
        export_editor("tiny:base", tmp_path / "copy", "bf16")
