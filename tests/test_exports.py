"""Every package says what it offers: its `__all__` and its namespace agree."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nopair

SOURCE = Path(__file__).parents[1] / "src"
PACKAGES = sorted(".".join(file.parent.relative_to(SOURCE).parts) for file in SOURCE.rglob("__init__.py"))


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_everything_public(name: str) -> None:
    package = importlib.import_module(name)
    public = {
        attribute
        for attribute, value in vars(package).items()
        if not attribute.startswith("_") and not inspect.ismodule(value) and not _of_typing(value)
    }
    missing = public - set(vars(package).get("__all__", ()))
    assert not missing, f"{name} offers {sorted(missing)}: name them in its __all__, or import them where they are used"


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_only_what_exists_and_once(name: str) -> None:
    package = importlib.import_module(name)
    names = list(vars(package).get("__all__", ()))
    assert len(names) == len(set(names))
    for attribute in names:
        getattr(package, attribute)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editr'"):
        _ = nopair.Editr


def test_importing_nopair_does_not_import_torch() -> None:
    probe = "import sys, nopair, nopair.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def _of_typing(value: object) -> bool:
    """`Any`, `Final` and their like, and the constant `TYPE_CHECKING`."""
    return getattr(value, "__module__", None) == "typing" or isinstance(value, bool)
