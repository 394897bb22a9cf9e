"""A resumed run goes on with the models it began with."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from nopair.config import load_recipe
from nopair.errors import CheckpointError, OutputError
from nopair.training.models import MODELS, keep_models, models_of, require_same_models
from nopair.training.run import train
from nopair.weights import resolve

SHORT = ("threads=1", "warmup.steps=1", "warmup.batch=1", "npedit.steps=0", "logging.sample_scenes=1")


def copied(tmp_path: Path) -> dict[str, Path]:
    """The tiny models, to be changed."""
    return {name: Path(shutil.copytree(resolve(f"tiny:{name}"), tmp_path / name)) for name in ("base", "judge")}


def change(weights: Path) -> None:
    """One bit, at the end; the size stays."""
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_all_models_of_a_recipe_are_known_by_their_names(tmp_path: Path) -> None:
    models = copied(tmp_path)
    more = [f"base.student={models['base']}", f"bystander.path={models['judge']}"]
    known = models_of(load_recipe("demo", [f"base.path={models['base']}", *more]))
    assert set(known) == {str(models["base"]), "tiny:judge", str(models["judge"])}
    assert known["tiny:judge"] == known[str(models["judge"])], "the same files have the same digest wherever they are"


@pytest.mark.parametrize("part", ["base", "judge"])
def test_other_weights_under_the_same_name_are_told_before_anything_is_loaded(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = copied(tmp_path)
    paths = [f"base.path={models['base']}", f"judge.path={models['judge']}"]
    recipe = load_recipe("demo", [*SHORT, *paths, f"output={tmp_path / 'run'}"])
    train(recipe, resume=False)
    (models[part] / "README.md").write_text("A card is no part of the model.")
    train(recipe, resume=True)
    change(next(iter(models[part].rglob("*.safetensors"))))
    with monkeypatch.context() as patched:
        patched.setattr("nopair.training.run.load_backbone", None)
        with pytest.raises(CheckpointError, match=rf"the files of .*{part} are not those.*remove .*{MODELS}"):
            train(recipe, resume=True)
    (tmp_path / "run" / MODELS).unlink()
    train(recipe, resume=True)  # as the message says
    assert json.loads((tmp_path / "run" / MODELS).read_text()) == models_of(recipe)


def test_a_run_that_kept_no_digests_goes_on_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_same_models(tmp_path, {"base": "1"})
    assert f"{tmp_path / MODELS} is missing" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '"text"', "\xff"])
def test_unreadable_digests(tmp_path: Path, content: str) -> None:
    (tmp_path / MODELS).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"{MODELS} cannot be read .* remove it"):
        require_same_models(tmp_path, {"base": "1"})


def test_a_model_that_is_new_to_the_run_is_none_of_those_it_began_with(tmp_path: Path) -> None:
    keep_models(tmp_path, {"base": "1"})
    require_same_models(tmp_path, {"base": "1", "bystander": "2"})
    with pytest.raises(CheckpointError, match="the files of base"):
        require_same_models(tmp_path, {"base": "2"})


def test_nothing_is_written_beside_a_recipe_that_no_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine: 1\n")
    with pytest.raises(OutputError, match="is another recipe"):
        train(load_recipe("demo", [*SHORT, "base.path=no/such/model", f"output={tmp_path}"]), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
