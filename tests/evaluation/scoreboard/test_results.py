"""What is said of a comparison: why marks are missing, and whether who trained also marks."""

from pathlib import Path

import pytest

from nopair.evaluation.scoreboard.results import (
    EditorFacts,
    JudgeFacts,
    StoredSample,
    _circular,
    _kind,
    read_samples,
)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("SC: refused (http://x/v1: status 400 (see: the content policy))", "SC: refused"),
        ("SC: the answer holds no JSON object", "SC: the answer holds no JSON object"),
        ("no output: /a/b c/d 1.png: no such output", "no output: no such output"),
        ("no output: runs/x/d.png: is a .gif and/or: broken", "no output: is a .gif and/or: broken"),
        ("PQ: http://127.0.0.1:9/v1: status 503 (busy), after 2 attempts", "PQ: status 503 (busy), after 2 attempts"),
        ("not made", "not made"),
    ],
)
def test_reasons_are_counted_without_what_differs_from_edit_to_edit(problem: str, kind: str) -> None:
    assert _kind(problem) == kind


@pytest.mark.parametrize(
    ("taught", "judge", "related"),
    [
        ("InternVL3-14B", JudgeFacts("internvl3-78b", "x", (), "m"), "of the same family (internvl)"),
        ("vlm (qwen2_5_vl)", JudgeFacts("judge", "qwen2_5_vl 0a1b bf16", (), "m"), "of the same family (qwen)"),
        ("llava-onevision-qwen2-7b-ov", JudgeFacts("llava-v1.6-34b", "1", (), "m"), "of the same family (llava)"),
        ("llava-onevision-qwen2-7b-ov", JudgeFacts("a", "1", (), "org/LLaVA-Qwen"), "same family (llava and qwen)"),
        ("Qwen3-VL", JudgeFacts("a", "v1", (), "Qwen/Qwen2.5-VL-72B-Instruct"), "of the same family (qwen)"),
        ("Qwen3-VL", JudgeFacts("a", "v1", ("qwen2.5-vl-72b",), "judge"), "of the same family (qwen)"),
        ("my-judge", JudgeFacts("my-judge", "1", (), "m"), "the same"),
        ("my-judge", JudgeFacts("a", "1", ("org/My-Judge",), "m"), "the same"),
        ("/models/my-judge (odd)", JudgeFacts("toy", "My-Judge", (), "m"), "the same"),
        ("my-judge", JudgeFacts("your-judge", "1", (), "m"), "the name of my-judge tells no family"),
        ("InternVL3-14B", JudgeFacts("your-judge", "1", (), "m"), "the name of your-judge tells no family"),
        ("InternVL3-14B", JudgeFacts("gpt-5", "gpt-5", (), "gpt-5"), None),
        ("my-judge", JudgeFacts("features", "dino 0a1b"), None),
    ],
)
@pytest.mark.parametrize("made_by", ["nopair", "outputs"])
def test_who_trained_must_not_mark_alone(taught: str, judge: JudgeFacts, related: str | None, made_by: str) -> None:
    said = _circular(EditorFacts("ours", {"kind": made_by}, (taught,), 0), [judge])
    assert len(said) == (related is not None)
    assert all(f"is marked by {judge.name}" in line and str(related) in line for line in said)


def test_an_unknown_teacher_is_asked_for_where_there_was_one() -> None:
    assert "tell it with ,judge=NAME" in _circular(EditorFacts("a", {"kind": "nopair"}, None, 0), [])[0]
    assert not _circular(EditorFacts("a", {"kind": "outputs"}, None, 0), [])


def test_names_with_odd_line_ends_are_read_back(tmp_path: Path) -> None:
    sample = StoredSample(
        judge="a\u2028b", editor="c\x85d", place="e", category="f", language="", in_intersection=None,
        marks={"SC": 1.0}, problems=(),
    )  # fmt: skip
    (tmp_path / "samples.jsonl").write_text(f"{sample.model_dump_json()}\n" * 2, encoding="utf-8")
    assert read_samples(tmp_path) == [sample, sample]
