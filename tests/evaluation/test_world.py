"""The shapes-world benchmark on outputs whose scores are known."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from nopair.editor import Editor
from nopair.errors import ConfigError, MemoryShortError, ModelError, OutputError
from nopair.evaluation.world import ask, evaluate, evaluate_editor, evaluate_outputs
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.judges.scripted import ScriptedJudge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.weights import resolve
from nopair.world.cases import held_out_cases
from nopair.world.render import render_batch
from nopair.world.scenes import is_held_out

JUDGE = ScriptedJudge((0.5, 0.5, 0.5))


def test_right_answers_score_one_and_references_zero_success() -> None:
    edits = held_out_cases(3, 2)
    right = evaluate_outputs(render_batch([edit.target for edit in edits]), JUDGE, edits).verdict.total
    assert (right.success, right.preservation, right.realism) == (1.0, 1.0, 1.0)
    unchanged = evaluate_outputs(render_batch([edit.source for edit in edits]), JUDGE, edits).verdict
    assert unchanged.categories["nothing"].success == 1.0
    assert all(marks.success == 0.0 for name, marks in unchanged.categories.items() if name != "nothing")
    assert all(is_held_out(edit.source) or is_held_out(edit.target) for edit in edits)


def test_scores_of_an_editor_do_not_depend_on_how_many_are_scored() -> None:
    editor, edits = Editor.load("tiny:editor"), held_out_cases(0, 2)
    many = evaluate_editor(editor, JUDGE, edits, seed=5).outputs
    few = evaluate_editor(editor, JUDGE, edits[:3], seed=5).outputs
    torch.testing.assert_close(many[:3], few, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [0, 7, 2**62, 2**63 - 1])
def test_any_seed_gives_every_edit_a_noise_of_its_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def note(self: Editor, references: torch.Tensor, instructions: list[str], seeds: list[int]) -> torch.Tensor:
        asked.extend(seeds)
        return references

    monkeypatch.setattr(Editor, "edit", note)
    evaluate_editor(Editor.load("tiny:editor"), JUDGE, held_out_cases(0, 4), seed)
    assert len(set(asked)) == len(asked) == 36
    assert all(0 <= one < 2**63 for one in asked)
    if seed == 7:
        assert asked == [7_000_021 + i for i in range(36)]


def test_the_judge_is_asked_what_it_was_trained_under() -> None:
    judge = LlavaOnevisionJudge.load(resolve("tiny:judge"))
    edits = held_out_cases(0, 1)
    answers = ask(judge, edits, render_batch([edit.source for edit in edits]))
    assert all("identity" in answer for answer in answers)
    assert [edit.category for edit, answer in zip(edits, answers, strict=True) if "edit" not in answer] == ["nothing"]


def test_evaluate_prints_a_table_and_writes_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("tiny:editor", 1, 0, tmp_path)
    shown = capsys.readouterr().out
    assert "recolour" in shown
    assert "judge" in shown
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["scenes"] == 9
    assert 0 <= written["success"] <= 1


def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create this folder"):
        evaluate("no/such/editor", 1, 0, tmp_path / "file")


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (512, 512)])
def test_an_editor_of_another_size_is_sent_to_a_benchmark(tmp_path: Path, height: int, width: int) -> None:
    settings = json.loads((resolve("tiny:editor") / "nopair.json").read_text())
    (tmp_path / "nopair.json").write_text(json.dumps(settings | {"height": height, "width": width}))
    with pytest.raises(ConfigError, match=rf"edits at {height}x{width} pixels.* 64x64; .*--benchmark"):
        evaluate(str(tmp_path), 1, 0, tmp_path / "out")


def test_an_editor_without_finite_pixels_is_told() -> None:
    editor = Editor.load("tiny:editor")
    for parameter in editor.backbone.transformer.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(ModelError, match="pixels that are not finite"):
        evaluate_editor(editor, JUDGE, held_out_cases(0, 1)[:2], 0)


def test_another_judge_changes_its_own_columns_alone(tmp_path: Path) -> None:
    """One that says Yes where the shipped one says No, and the other way round."""
    judge = LlavaOnevisionJudge.load(resolve("tiny:judge"))
    words = list(judge.answers.usual)
    with torch.no_grad():
        judge.model.lm_head.weight[words] = judge.model.lm_head.weight[words[::-1]]
    shutil.copytree(resolve("tiny:judge"), tmp_path / "judge")
    judge.model.save_pretrained(tmp_path / "judge")
    found = []
    for name in ("tiny:judge", str(tmp_path / "judge")):
        evaluate("tiny:editor", 1, 0, tmp_path / "out", judge=name)
        found.append(json.loads((tmp_path / "out" / "evaluation.json").read_text()))
        assert found[-1]["judge"] == name
    for measure in ("judge_edit", "judge_identity"):
        assert found[0][measure] + found[1][measure] == pytest.approx(1)
    for measure in ("success", "preservation", "realism", "overall"):
        assert found[0][measure] == found[1][measure]


def test_chosen_categories_are_scored(tmp_path: Path) -> None:
    evaluate("tiny:editor", 1, 0, tmp_path, categories=("free-form", "move", "move"))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(written["categories"]) == ["move", "free-form"]
    assert written["scenes"] == 2


def test_a_category_that_does_not_exist_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no category 'paint'; choose of: recolour,.*free-form"):
        evaluate("no such editor", 1, 0, tmp_path, categories=("move", "paint"))
    with pytest.raises(ConfigError, match="dtype 'int8' is unknown; choose auto, bf16"):
        evaluate("no such editor", 1, 0, tmp_path, dtype="int8")


def test_a_judge_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, device: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(VisionLanguageJudge, "to", fails)
    with pytest.raises(MemoryShortError, match=r"2.50 GiB more\); name a smaller judge"):
        evaluate("tiny:editor", 1, 0, tmp_path)


def test_half_precision_computes_in_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Editor, "edit", lambda self, images, _words, _seeds: seen.append(self) or images)
    for name in ("auto", "bf16"):
        evaluate("tiny:editor", 1, 0, tmp_path, dtype=name)
    assert [one.backbone.transformer.dtype for one in seen] == [torch.float32, torch.bfloat16]


def test_a_right_new_scene_scores_one_and_the_reference_shows_the_subject_only() -> None:
    edits = held_out_cases(3, 6, ("free-form",))
    right = evaluate_outputs(render_batch([edit.target for edit in edits]), JUDGE, edits).verdict.total
    assert (right.success, right.preservation, right.realism) == (1.0, 1.0, 1.0)
    unchanged = evaluate_outputs(render_batch([edit.source for edit in edits]), JUDGE, edits).verdict.total
    assert (unchanged.success, unchanged.preservation, unchanged.overall) == (0.0, 1.0, 0.0)
