"""Names of models are paths, but for the three that come with nopair."""

from pathlib import Path

import pytest

from nopair import weights
from nopair.errors import ModelError
from nopair.weights import PARTS, packaged, resolve


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_the_tiny_models_are_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packaged() == Path(weights.__file__).parent / "tiny" / "weights"
    monkeypatch.setattr(weights, "packaged", lambda: tmp_path)
    for part in PARTS:
        (tmp_path / part).mkdir()
        assert resolve(f"tiny:{part}") == tmp_path / part


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", "check the path"),
        ("Tongyi-MAI/Z-Image", "hf download Tongyi-MAI/Z-Image --local-dir"),
        ("Tongyi-MAI/Z-Image", "(a gated model needs hf auth login first)"),
        ("", "no such model folder"),
        ("x" * 5000, "no such model folder"),
        ("a\0b", "no such model folder"),
        (__file__, "no such model folder"),
        ("tiny:vae", "there are tiny:base, tiny:judge, tiny:judge-2, tiny:judge-64, tiny:judge-32, tiny:editor"),
        ("tiny:", "there are tiny:base"),
        ("tiny:../../x", "there are tiny:base"),
        ("tiny:judge", "build it with: nopair tiny build judge"),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "packaged", lambda: tmp_path)
    with pytest.raises(ModelError) as error:
        resolve(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
