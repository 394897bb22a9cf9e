"""nopair trains without before/after pairs: the types that carry training data have no place for a right answer."""

import dataclasses
import typing

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from nopair.types import EditBatch, EditRecord

# The whole of what training knows of a sample: one image, which is the reference, and words.
SHAPES = {EditRecord: "3 height width", EditBatch: "batch 3 height width"}
WORDS = {
    EditRecord: {"instruction": str, "caption": str, "edited_caption": str, "category": str, "subject": str},
    EditBatch: dict.fromkeys(
        ("instructions", "captions", "edited_captions", "categories", "subjects"), tuple[str, ...]
    ),
}


def _record(reference: Tensor) -> EditRecord:
    return EditRecord(reference, "make the red circle blue", "a red circle", "a blue circle", "recolour", "red circle")


@pytest.mark.parametrize("kind", SHAPES)
def test_no_field_can_hold_a_target_image(kind: type) -> None:
    fields = typing.get_type_hints(kind)
    image = fields.pop("reference")
    assert (image.array_type, image.dim_str) == (Tensor, SHAPES[kind])
    assert fields == WORDS[kind], "besides the reference, a sample is words"


@pytest.mark.parametrize("kind", SHAPES)
def test_no_field_can_be_added_later(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert "__dict__" not in dir(kind), "without slots anything can be attached to an instance"
    assert not [name for name in dir(kind) if isinstance(getattr(kind, name), property)]


def test_an_image_cannot_be_attached_to_a_record() -> None:
    record = _record(torch.zeros(3, 8, 8))
    with pytest.raises((AttributeError, TypeError)):
        object.__setattr__(record, "target", torch.zeros(3, 8, 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.reference = torch.ones(3, 8, 8)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("reference", [torch.zeros(6, 8, 8), torch.zeros(2, 3, 8, 8)], ids=["two images", "a stack"])
def test_the_reference_is_one_image(reference: Tensor) -> None:
    """Also shows that shapes are checked in tests."""
    with pytest.raises(TypeCheckError):
        _record(reference)


def test_words_cannot_be_replaced_by_an_image() -> None:
    with pytest.raises(TypeCheckError):
        EditRecord(torch.zeros(3, 8, 8), "do nothing", "a red circle", torch.zeros(3, 8, 8), "nothing")
