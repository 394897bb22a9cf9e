"""The shape of the source tree: who may import whom, and how large a piece may get."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "nopair").rglob("*.py"))
MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_THE_METHOD = 700

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())


def test_imports_obey_the_contracts() -> None:
    """The contracts stand in pyproject.toml, under `tool.importlinter`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@each_source
def test_files_stay_small(source: Path) -> None:
    assert _lines(source) <= MOST_LINES_OF_A_FILE


@each_source
def test_functions_stay_small(source: Path) -> None:
    long = {
        node.name: size
        for node in ast.walk(_tree(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


def test_the_method_can_be_read_in_one_sitting() -> None:
    assert sum(_lines(source) for source in SOURCES if "method" in source.parts) < MOST_LINES_OF_THE_METHOD


@each_source
def test_imports_are_declared(source: Path) -> None:
    """Whatever is imported from outside is a dependency of nopair's own, not of one of its dependencies."""
    undeclared = set(_imported(source)) - sys.stdlib_module_names - _declared_modules() - {"nopair"}
    assert not undeclared, f"{sorted(undeclared)}: name the package in pyproject.toml and constraints.txt"


@each_source
def test_nobody_asks_an_object_what_it_is_made_of(source: Path) -> None:
    """`hasattr` hides a missing protocol: abstract or final, known from the type."""
    names = {node.id for node in ast.walk(_tree(source)) if isinstance(node, ast.Name)}
    assert "hasattr" not in names


@cache
def _declared_modules() -> frozenset[str]:
    """Top-level modules of the packages that pyproject.toml names, without the developer's tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    declared = {_distribution(requirement) for requirement in project["dependencies"] + extras}
    providers = packages_distributions()
    installed = {m for m, names in providers.items() if declared & {_distribution(name) for name in names}}
    return frozenset(installed | declared)  # an extra that is not installed goes by its own name


def _lines(source: Path) -> int:
    return len(source.read_text(encoding="utf-8").splitlines())


def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def _imported(source: Path) -> Iterator[str]:
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def _distribution(requirement: str) -> str:
    """`PyYAML>=6`, `pyyaml` and `pyright[nodejs]` -> the normalised name alone."""
    name = requirement
    for end in "[<>=!~; ":
        name = name.partition(end)[0]
    return name.lower().replace("_", "-")
