"""Labelled cases: those of the shapes world are right, and a user's folder is read or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nopair.data.images import save_image
from nopair.errors import DataError, ImageError, NopairError
from nopair.evaluation.audit.cases import FolderCases, shapes_cases
from nopair.world.attempts import KINDS
from nopair.world.edits import CATEGORIES
from nopair.world.render import render
from nopair.world.scenes import is_held_out

GOOD: dict[str, Any] = {
    "reference": "a.png", "edited": "b.png", "instruction": "remove the hat", "category": "remove",
    "subject": "hat", "edit_done": True, "rest_same": False,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    for name, size in (("a.png", (8, 12)), ("b.png", (6, 6)), ("c.png", (8, 12))):
        save_image(torch.rand(3, *size), tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "cases.jsonl").write_text(text)
    return folder


# The shapes world -----------------------------------------------------------------------------------------------------


def test_every_kind_of_attempt_at_every_kind_of_edit() -> None:
    cases = shapes_cases(0, 1)
    assert [(case.category, case.attempt) for case in cases] == [(c, kind) for c in CATEGORIES for kind in KINDS]
    for case in cases:
        assert case.edit is not None
        assert is_held_out(case.edit.source) or is_held_out(case.edit.target)
        assert torch.equal(case.reference, render(case.edit.source))
        assert case.target is not None
        assert torch.equal(case.target, render(case.edit.target))
        labels = (case.edit_done, case.rest_same)
        if case.attempt == "right":
            assert labels == (True, True)
        elif case.attempt == "unchanged":
            assert labels == (case.category == "nothing", True)
        elif case.attempt == "corrupted":
            assert labels == (None if case.category == "remove" else False, False)


def test_a_case_does_not_depend_on_how_many_there_are() -> None:
    few, many = shapes_cases(7, 1), shapes_cases(7, 2)
    for one, other in zip(few, many, strict=False):
        assert torch.equal(one.edited, other.edited)
        assert (one.instruction, one.edit_done, one.rest_same) == (other.instruction, other.edit_done, other.rest_same)
    assert not torch.equal(few[2].edited, shapes_cases(8, 1)[2].edited)


def test_repainting_is_for_edited_images_only() -> None:
    plain, grey = shapes_cases(0, 1), shapes_cases(0, 1, lambda pixels: torch.full_like(pixels, 0.5))
    for one, other in zip(plain, grey, strict=True):
        assert (other.edited == 0.5).all()
        assert torch.equal(one.reference, other.reference)


# A user's folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_read(folder: Path) -> None:
    more = GOOD | {"target": "c.png", "attempt": "blurred", "category": "hats", "subject": "", "edit_done": False}
    cases = FolderCases(write(folder, GOOD, "", more, ""))
    assert len(cases) == 2
    first, second = cases
    assert (first.reference.shape, first.edited.shape) == ((3, 8, 12), (3, 6, 6))
    assert (first.instruction, first.category, first.subject) == ("remove the hat", "remove", "hat")
    assert (first.edit_done, first.rest_same, first.target, first.attempt) == (True, False, None, "")
    assert second.target is not None
    assert (second.edit_done, second.attempt, second.edit) == (False, "blurred", None)
    assert [case.category for case in cases[1:]] == ["hats"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit_done": "yes"}, 'edit_done is "yes"; write true or false'),
        ({"rest_same": 1}, "rest_same is 1; write true or false"),
        ({"rest_same": None}, "rest_same is null; write true or false"),
        ({"reference": ""}, 'reference is ""; write path'),
        ({"reference": 5}, "reference is 5; write path"),
        ({"edit_dnoe": True}, "unknown field edit_dnoe; did you mean edit_done?"),
        ({"instruction": " "}, "instruction is blank"),
        ({"category": "\t"}, "category is blank"),
        ({"subject": ""}, "subject is empty, but 'remove' is asked about by it"),
        ({"reference": "no.png"}, "reference: "),
        ({"edited": "cases.jsonl/x"}, "edited: "),
        ({"target": "no.png"}, "no such image; check the path"),
    ],
)
def test_a_bad_line_is_told_by_file_line_and_field(folder: Path, change: dict[str, Any], said: str) -> None:
    write(folder, GOOD, GOOD | change)
    with pytest.raises(NopairError) as caught:
        FolderCases(folder)
    assert str(caught.value).startswith(f"{folder / 'cases.jsonl'}, line 2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_missing_field_is_named(folder: Path, missing: str) -> None:
    write(folder, {name: value for name, value in GOOD.items() if name != missing})
    with pytest.raises(DataError, match=f"line 1: {missing} is missing; write "):
        FolderCases(folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "not JSON"), ("[]", "not a JSON object"), ("3", "not a JSON object"), ("[" * 9999, "not JSON")],
)
def test_what_is_no_object(folder: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=f"line 1: {said}"):
        FolderCases(write(folder, line))


def test_what_is_no_folder_of_cases(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "no"):
        with pytest.raises(DataError, match=r"no such file; name a folder that holds a cases\.jsonl"):
            FolderCases(folder)
    with pytest.raises(DataError, match="holds no cases"):
        FolderCases(write(tmp_path, "", " "))
    (tmp_path / "cases.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="cannot be read"):
        FolderCases(tmp_path)


def test_broken_images_and_targets_of_another_size_are_told_when_read(folder: Path) -> None:
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    cases = FolderCases(write(folder, GOOD, GOOD | {"edited": "cut.png"}, GOOD | {"target": "b.png"}))
    assert cases[0].edit_done
    with pytest.raises(ImageError, match=r"line 2: edited: .*cut\.png"):
        _ = cases[1]
    with pytest.raises(DataError, match="line 3: target is 6x6, the reference 12x8"):
        _ = cases[2]
