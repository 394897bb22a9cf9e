"""A file or a folder is complete or absent, whatever happens on the way."""

import os
import stat
from pathlib import Path

import pytest

from nopair.data.files import check_folder, check_output, file_name, folder_atomic, is_folder, make_folder, write_atomic
from nopair.errors import NopairError, OutputError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a.png"
    write_atomic(path, b"old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_the_users_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_outputs_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for path, said in [
        (tmp_path / "a.bmp", "end the name in .png"),
        (tmp_path / "b.png", "is a folder"),
        (tmp_path / "no" / "a.png", "create it first"),
        (tmp_path / ("x" * 300) / "a.png", "create it first"),
    ]:
        with pytest.raises(OutputError, match=said):
            check_output(path)
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write anywhere
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "a.png")


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"), tmp_path / "a\0b"):
        with pytest.raises(OutputError, match="cannot create this folder"):
            make_folder(path)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert is_folder(tmp_path / "a" / "b")
    assert not is_folder(tmp_path / ("x" * 300))


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "editor"
    with folder_atomic(folder, "marker") as part:
        (part / "marker").write_text("1")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["marker"]
    with folder_atomic(folder, "marker") as part:
        (part / "marker").write_text("2")
        (part / "more").write_text("")
        assert (folder / "marker").read_text() == "1"
    assert sorted(path.name for path in folder.iterdir()) == ["marker", "more"]
    assert [path.name for path in folder.parent.iterdir()] == ["editor"]


def _write_half(folder: Path, error: BaseException) -> None:
    with folder_atomic(folder, "marker") as part:
        (part / "marker").write_text("new")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), OutputError("no")])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "editor"
    with folder_atomic(folder, "marker") as part:
        (part / "marker").write_text("old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        _write_half(folder, error)
    assert (folder / "marker").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"), folder_atomic(tmp_path, "marker"):
        pass
    for path, said in (
        (tmp_path / "thesis.tex", "is a file"),
        (tmp_path / "thesis.tex" / "below", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=said), folder_atomic(path, "marker") as part:
            (part / "marker").write_text("")
        with pytest.raises(OutputError, match=said):
            check_folder(path, "marker")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert len(list(tmp_path.iterdir())) == 1


def test_folders_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_atomic(tmp_path / "ours", "marker") as part:
        (part / "marker").write_text("")
    for path in (tmp_path / "ours", tmp_path / "new", tmp_path / "new" / "deep"):
        check_folder(path, "marker")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    with pytest.raises(OutputError, match="cannot be written"):
        check_folder(tmp_path / "a\0b", "marker")
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write anywhere
    with pytest.raises(OutputError, match="is no writable folder"):
        check_folder(tmp_path / "new" / "deep", "marker")


def test_all_are_errors_of_the_user() -> None:
    assert issubclass(OutputError, NopairError)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SFT, then NP-Edit", "SFT-then-NP-Edit"),
        ("100 %", "100"),
        ("../../etc/passwd", "etc-passwd"),
        ("编辑 model.v2", "编辑-model.v2"),
        ("//", "unnamed"),
        ("..", "unnamed"),
    ],
)
def test_a_name_of_a_file_is_one_plain_part_of_a_path(text: str, name: str) -> None:
    assert file_name(text) == name
