"""Labelled edits to audit a judge on: from the shapes world, or from a folder of the user's."""

import difflib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, overload

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nopair.data.files import check_image
from nopair.data.images import load_image
from nopair.errors import DataError, ImageError
from nopair.judges.questions import templates_for
from nopair.world.attempts import KINDS, Attempt, make_attempt, seen_in
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, Edit
from nopair.world.render import render

FILE: Final = "cases.jsonl"
"""Name of the list in a user's folder of cases."""

Repaint = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch 3 height width"]]
"""Images as an editor would paint them, such as an autoencoder's round trip. RGB in [0, 1] both ways."""


@dataclass(frozen=True, eq=False, slots=True)
class LabelledCase:
    """One edit of one image, and what is true of it.

    Attributes:
        reference, edited: RGB in [0, 1]; their sizes may differ.
        instruction, category, subject: as in `nopair.types.EditRecord`.
        edit_done: whether the instruction was carried out; None where that is debatable, and then it is not asked.
        rest_same: whether all that the instruction does not concern is as in the reference; None as above.
        target: a right result, of the reference's size, if one is known.
        attempt: what kind of attempt it is, in a word, or empty.
        edit: where the case is of the shapes world, the edit, for the oracle.
    """

    reference: Float[Tensor, "3 height width"]
    edited: Float[Tensor, "3 edited_height edited_width"]
    instruction: str
    category: str
    subject: str
    edit_done: bool | None
    rest_same: bool | None
    target: Float[Tensor, "3 height width"] | None
    attempt: str = ""
    edit: Edit | None = None


# The shapes world -----------------------------------------------------------------------------------------------------


def shapes_cases(
    seed: int, per_category: int, repaint: Repaint | None = None, categories: Sequence[str] = CATEGORIES
) -> list[LabelledCase]:
    """Attempts of every kind (`nopair.world.attempts.KINDS`) at each of `per_category` held-out edits per category.

    With `repaint`, edited images go through it, as all that an editor paints goes through its decoder. An attempt
    depends on the seed, its edit's place in `held_out_cases` and its kind only.
    """
    return [
        case
        for index, edit in enumerate(held_out_cases(seed, per_category, categories))
        for case in _shapes_cases(f"attempts {seed} {index}", edit, repaint)
    ]


def _shapes_cases(key: str, edit: Edit, repaint: Repaint | None) -> list[LabelledCase]:
    attempts = []
    for kind in KINDS:
        rng = random.Random(f"{key} {kind}")
        attempts.append(make_attempt(rng, kind, edit, torch.Generator().manual_seed(rng.getrandbits(63))))
    images = torch.stack([attempt.image for attempt in attempts])
    if repaint is not None:
        images = repaint(images)
    return [_shapes_case(*each, edit) for each in zip(KINDS, attempts, images, strict=True)]


def _shapes_case(kind: str, attempt: Attempt, edited: Float[Tensor, "3 height width"], edit: Edit) -> LabelledCase:
    return LabelledCase(
        reference=render(edit.source),
        edited=edited,
        instruction=edit.instruction,
        category=edit.category,
        subject=edit.subject,
        edit_done=_is_gone(edit, attempt) if edit.category == "remove" else attempt.done,
        rest_same=attempt.kept,
        target=render(edit.target),
        attempt=kind,
        edit=edit,
    )


def _is_gone(edit: Edit, attempt: Attempt) -> bool | None:
    """Removal is asked about by looking for the subject: what took on another colour is gone, too."""
    return None if attempt.shown is None else seen_in(attempt.shown, edit.subject) is None


# A user's folder ------------------------------------------------------------------------------------------------------

_Text = Annotated[str, Field(min_length=1)]


class _Line(BaseModel):
    """One line of cases.jsonl. Descriptions are what an error tells the user to write."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    reference: _Text = Field(description="path of the image before the edit")
    edited: _Text = Field(description="path of the image after the edit")
    instruction: _Text = Field(description="what was asked for, in words")
    category: _Text = Field(description='kind of edit, such as "recolour", "remove" or "nothing"')
    subject: str = Field(description='noun of the object the edit is about, or ""')
    edit_done: bool = Field(description="true or false: whether the instruction was carried out")
    rest_same: bool = Field(description="true or false: whether all else is as it was")
    target: _Text | None = Field(default=None, description="path of a right result, or leave it out")
    attempt: str = Field(default="", description='kind of attempt in a word, such as "blurred", or leave it out')


class FolderCases(Sequence[LabelledCase]):
    """The cases that `<folder>/cases.jsonl` lists, a JSON object a line. Images are read when a case is asked for.

    Paths in it are relative to the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Reads and checks all lines; looks whether the images are there, without opening them.

        Raises:
            DataError: no such file, no cases in it, or a line that is no case.
            ImageError: an image is missing. Reading a case raises it, too, where an image is broken.
        """
        self.folder = folder
        self.lines: list[tuple[str, _Line]] = []
        source = folder / FILE
        for number, text in enumerate(_read(source), start=1):
            if text.strip():
                where = f"{source}, line {number}"
                self.lines.append((where, self._checked(where, _parse(where, text))))
        if not self.lines:
            raise DataError(f"{source}: holds no cases; write a JSON object a line")

    def _checked(self, where: str, line: _Line) -> _Line:
        for field in ("instruction", "category"):
            if not getattr(line, field).strip():
                raise DataError(f"{where}: {field} is blank; write {_meaning(field)}")
        if not line.subject.strip() and any("{subject}" in each.prompt for each in templates_for(line.category)):
            raise DataError(f"{where}: subject is empty, but {line.category!r} is asked about by it; name the object")
        for field in ("reference", "edited", "target"):
            name = getattr(line, field)
            if name is not None:
                try:
                    check_image(self.folder / name)
                except ImageError as error:
                    raise ImageError(f"{where}: {field}: {error}") from None
        return line

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> LabelledCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[LabelledCase]: ...
    def __getitem__(self, index: int | slice) -> LabelledCase | list[LabelledCase]:
        if isinstance(index, slice):
            return [self._case(where, line) for where, line in self.lines[index]]
        return self._case(*self.lines[index])

    def _case(self, where: str, line: _Line) -> LabelledCase:
        reference = self._image(where, "reference", line.reference)
        target = None if line.target is None else self._image(where, "target", line.target)
        if target is not None and target.shape != reference.shape:
            sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (target, reference)]
            raise DataError(
                f"{where}: target is {sizes[0]}, the reference {sizes[1]}; scale it to the reference's size"
            )
        return LabelledCase(
            reference=reference,
            edited=self._image(where, "edited", line.edited),
            instruction=line.instruction,
            category=line.category,
            subject=line.subject,
            edit_done=line.edit_done,
            rest_same=line.rest_same,
            target=target,
            attempt=line.attempt,
        )

    def _image(self, where: str, field: str, name: str) -> Float[Tensor, "3 height width"]:
        try:
            return load_image(self.folder / name)
        except ImageError as error:
            raise ImageError(f"{where}: {field}: {error}") from error


def _read(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{source}: no such file; name a folder that holds a {FILE}") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(
            f"{source}: cannot be read ({reason}); it should be UTF-8 text, a JSON object a line"
        ) from error


def _parse(where: str, text: str) -> _Line:
    try:
        return _Line.model_validate(json.loads(text))
    except ValidationError as error:
        raise DataError(f"{where}: {_explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); write one object on the line") from None


def _explain(error: ValidationError) -> str:
    """Field, what is wrong and what to write, of the first problem; an unknown field explains a missing one."""
    problems: Any = error.errors(include_url=False)
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    if not problem["loc"]:
        return f"not a JSON object; write one with {', '.join(_Line.model_fields)}"
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, _Line.model_fields, n=1, cutoff=0)
        return f"unknown field {field}; did you mean {near[0]}?"
    if problem["type"] == "missing":
        return f"{field} is missing; write {_meaning(field)}"
    given = json.dumps(problem["input"])
    return f"{field} is {given if len(given) <= 60 else given[:57] + '...'}; write {_meaning(field)}"


def _meaning(field: str) -> str:
    return _Line.model_fields[field].description or field
