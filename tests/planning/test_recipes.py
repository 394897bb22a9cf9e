"""The recipes by base and tier: planned to fit, and run for two steps on tiny models of their families."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from nopair.config import load_recipe, recipe_names
from nopair.planning.plan import GIB, Plan, StagePlan, plan
from nopair.settings import path_override
from nopair.training.run import EDITOR, train

BASES = {"zimage": "zimage", "flux2-klein": "flux2", "sd35-medium": "sd3", "qwen-image": "qwen_image"}
TIERS = {"24gb": (24.0, 1), "48gb": (48.0, 1), "80gb": (80.0, 1), "8x80gb": (80.0, 8)}
"""GiB of a card and how many of them."""
SHORTER = ("warmup.steps=0", "logging.samples_every=0")
"""Stages left out here, for time; the figures in docs/planning.md (`benchmarks/recipes.py`) are with them."""
NAMES = [name for name in recipe_names() if name not in ("demo", "study", "tiny", "tiny-freeform")]


def parts(name: str) -> tuple[str, str]:
    base, _, tier = name.rpartition("-")
    return base, tier


def test_every_base_has_a_recipe_for_every_tier() -> None:
    assert sorted(map(parts, NAMES)) == sorted((base, tier) for base in BASES for tier in TIERS)


QUICK = ("zimage-24gb", "sd35-medium-24gb")
"""Planned in every run of the tests: a base of each of the two ways to see the reference. The others take minutes; of
them, what docs/planning.md says is checked."""
TABLE = Path(__file__).parents[2] / "docs" / "planning.md"


def told(name: str) -> tuple[str, str, float]:
    """What the table in docs/planning.md says of a recipe: judge, what is trained, planned GiB."""
    (row,) = re.findall(rf"^\| `{name}` \| (.+?) \| (.+?) \| ([\d.]+)(?: each)? \|", TABLE.read_text(), re.MULTILINE)
    return row[0], row[1], float(row[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_its_tier_by_the_table_of_planned_figures(name: str) -> None:
    recipe, (judge, trained, gib) = load_recipe(name), told(name)
    bits = f", {recipe.judge.bits} bits" if recipe.judge.bits else ""
    assert judge == recipe.judge.path.rpartition("/")[2] + bits
    assert trained.endswith(f", {recipe.base.roles}")
    assert Plan(name, 1, {}, {}, (StagePlan("all", {"all": round(gib * GIB)}, {}),), (), {}).fits(
        TIERS[parts(name)[1]][0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_to_fit_its_tier(name: str) -> None:
    if name not in QUICK and not os.environ.get("TEST_PLANS"):
        pytest.skip(
            "a plan of full size takes a minute; TEST_PLANS=1 makes all of them; docs/planning.md has its figure"
        )
    gib, ranks = TIERS[parts(name)[1]]
    recipe = load_recipe(name, SHORTER)
    planned = plan(recipe, ranks=ranks, switches=False)
    assert planned.fits(gib), f"{planned.peak_bytes / GIB:.2f} GiB"
    assert planned.peak_bytes / GIB <= told(name)[2] + 0.051, (
        "docs/planning.md is out of date: run benchmarks/recipes.py"
    )
    if name == "zimage-24gb":
        assert (recipe.data.height, recipe.data.width) == (512, 512)  # pyright: ignore
        assert (recipe.base.roles, recipe.judge.bits) == ("lora", 4)
        assert "7b" in recipe.judge.path
        assert planned.peak_bytes < 22 * GIB


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sibling: Callable[[str], ModuleType]) -> Path:
    """Two tiny random judges by their `model_type`, and two photos."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("internvl", "llava_onevision"):
        sibling("judges/families.py").CASES[name].save(folder / name)
    lines = []
    for number in range(2):
        Image.new("RGB", (70, 50 + number), (90 * number, 30, 60)).save(folder / f"{number}.png")
        line = {"image": f"{number}.png", "instruction": "add a hat", "caption": "a cat", "category": "add"}
        lines.append(json.dumps(line | {"edited_caption": "a cat with a hat"}))
    (folder / "photos.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_two_steps_on_tiny_models(name: str, tiny_bases: Path, models: Path, tmp_path: Path) -> None:
    """All that a CPU cannot do, and all that costs time, is turned down; the rest is the recipe's own."""
    recipe = load_recipe(name)
    judge = "internvl" if "InternVL" in recipe.judge.path else "llava_onevision"
    small = [
        path_override("base.path", tiny_bases / BASES[parts(name)[0]]),
        path_override("judge.path", models / judge),
        path_override("data.path", models / "photos.jsonl"),
        path_override("data.cache", tmp_path / "cache"),
        path_override("output", tmp_path / "run"),
        "data.height=64",
        "data.width=64",
        "threads=1",
        "base.bits=null",
        "judge.bits=null",
        *(f"{phase}.{key}" for phase in ("warmup", "npedit") for key in ("steps=2", "optimiser=adamw", "batch=2")),
        *(f"{phase}.accumulate={min(2, recipe.npedit.accumulate)}" for phase in ("warmup", "npedit")),
        "npedit.fake_steps=1",
        "logging.samples_every=2",
        "logging.sample_scenes=1",
    ]
    train(load_recipe(name, small), resume=False)
    assert (tmp_path / "run" / EDITOR / "model_index.json").is_file()
