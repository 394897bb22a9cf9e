"""An editor tells which judges it was trained under, those of earlier runs included."""

import pytest

from nopair.config import load_recipe
from nopair.training.run import taught_before, taught_by

JUDGE, SECOND = "tiny:judge (llava_onevision)", "tiny:judge-2 (llava_onevision)"


@pytest.mark.parametrize(
    ("changes", "judges"),
    [
        ((), (JUDGE,)),
        (("npedit.steps=0",), ()),
        (("npedit.judge_weight=0.0",), ()),
        (("judge.weight=0.0", "ensemble=[{path: tiny:judge-2}]"), (SECOND,)),
        (("npedit.steps=0", "grpo.steps=1", "grpo.batch=1"), (JUDGE,)),
        (("judge.path=tiny:judge-2", "ensemble=[{path: tiny:judge}]"), (SECOND, JUDGE)),
        (("base.student=tiny:editor", "npedit.steps=0"), (JUDGE, SECOND)),
        (("base.student=tiny:editor", "judge.path=/gone/InternVL3"), (JUDGE, SECOND, "InternVL3")),
        (("base.student=tiny:base",), (JUDGE,)),
    ],
)
def test_whom_an_editor_was_trained_under(changes: tuple[str, ...], judges: tuple[str, ...]) -> None:
    assert taught_by(load_recipe("demo", list(changes))) == judges


def test_who_has_only_learnt_to_copy_was_taught_by_none_of_this_run() -> None:
    """Such students are where all variants of a study start, whatever their judges."""
    assert taught_before(load_recipe("demo", [])) == ()
    assert taught_before(load_recipe("demo", ["base.student=tiny:editor"])) == (JUDGE, SECOND)
