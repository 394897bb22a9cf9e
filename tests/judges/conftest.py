"""Random checkpoint folders of every family, built once per test run, and judges loaded from them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.judges.load import FAMILIES, load_judge
from nopair.judges.vision_language import VisionLanguageJudge


def _sibling() -> ModuleType:
    """`families.py` of this folder: `--import-mode=importlib` knows no sibling modules."""
    spec = importlib.util.spec_from_file_location("nopair_test_families", Path(__file__).with_name("families.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


families = _sibling()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family; copy it before changing it."""
    made = {name: tmp_path_factory.mktemp(name) for name in families.CASES}
    for name, folder in made.items():
        families.CASES[name].save(folder)
    return made


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family's name in turn."""
    return request.param


@pytest.fixture(scope="session")
def case(family: str) -> Any:
    """The family's `families.Case`."""
    return families.CASES[family]


@pytest.fixture(scope="session")
def judges(folders: dict[str, Path]) -> dict[str, VisionLanguageJudge]:
    """A judge of each family; frozen, so tests may share them."""
    return {name: load_judge(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def family_judge(judges: dict[str, VisionLanguageJudge], family: str) -> VisionLanguageJudge:
    """The family's judge."""
    return judges[family]


@pytest.fixture(scope="session")
def judge_folder(folders: dict[str, Path]) -> Path:
    """The LLaVA-OneVision checkpoint; copy it before changing it."""
    return folders["llava_onevision"]


@pytest.fixture(scope="session")
def judge(judge_folder: Path) -> LlavaOnevisionJudge:
    """The LLaVA-OneVision checkpoint, loaded; frozen, so tests may share it."""
    return LlavaOnevisionJudge.load(judge_folder)
