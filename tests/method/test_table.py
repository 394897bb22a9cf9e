"""The map from equation to function is complete, and the package stays as small and as pure as it claims."""

import ast
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest

import nopair.method

FOLDER = Path(nopair.method.__file__).parent
DOCS = FOLDER.parents[2] / "docs" / "method.md"
FUNCTIONS = sorted(name for name in nopair.method.__all__ if isinstance(getattr(nopair.method, name), FunctionType))
ROW = re.compile(r"^\| (\d+) +[^|]*\|([^|]*)\|", re.MULTILINE)


def rows(text: str) -> dict[str, set[str]]:
    """Function -> the equations its rows name."""
    table: dict[str, set[str]] = {}
    for number, functions in ROW.findall(text):
        for function in re.findall(r"`(\w+)`", functions):
            table.setdefault(function, set()).add(number)
    return table


def test_every_function_has_its_row_here_and_in_the_docs() -> None:
    table = rows(inspect.getdoc(nopair.method) or "")
    assert sorted(table) == FUNCTIONS
    assert rows(DOCS.read_text(encoding="utf-8")) == table


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_names_its_equation(name: str) -> None:
    documented = inspect.getdoc(getattr(nopair.method, name)) or ""
    numbers = rows(inspect.getdoc(nopair.method) or "")[name]
    # `does_nothing` is a rule about the data that Eq. 21 stands on, not an equation.
    assert name == "does_nothing" or all(f"Eq. {number}" in documented for number in numbers)


def test_it_reads_in_one_sitting() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.glob("*.py")) < 700


def test_it_knows_tensors_and_types_only() -> None:
    allowed = {"collections", "dataclasses", "jaxtyping", "math", "torch", "nopair.errors", "nopair.types"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.startswith("nopair.method") or any(
                    module == name or module.startswith(f"{name}.") for name in allowed
                ), f"{path.name} imports {module}"
