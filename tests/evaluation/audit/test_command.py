"""The audit as a whole: a judge in closed form, the tiny judge, and one of another family; tables, JSON, warnings."""

import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nopair.backbones.load import load_backbone
from nopair.data.images import save_image
from nopair.errors import ConfigError, DataError, OutputError
from nopair.evaluation.audit import command
from nopair.evaluation.audit.cases import LabelledCase, shapes_cases
from nopair.evaluation.audit.command import Place, Settings, audit, autoencoder_of, examine
from nopair.evaluation.audit.tables import Table, drawn
from nopair.judges.load import load_judge
from nopair.judges.scripted import ScriptedJudge

CPU = torch.device("cpu")
KINDS = ("right", "unchanged", "wrong")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some of the shapes world's cases as a user would write them down."""
    target = tmp_path / "cases"
    target.mkdir()
    shown = [c for c in shapes_cases(0, 1) if c.category in ("recolour", "nothing") and c.attempt in KINDS]
    lines = []
    for number, each in enumerate(shown):
        assert each.target is not None
        names = {name: f"{number}-{name}.png" for name in ("reference", "edited", "target")}
        for name, image in zip(names, (each.reference, each.edited, each.target), strict=True):
            save_image(image, target / names[name])
        words = {"instruction": each.instruction, "category": each.category, "subject": each.subject}
        lines.append(names | words | {"edit_done": each.edit_done, "rest_same": each.rest_same})
    (target / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return target


def written(output: Path) -> dict[str, Any]:
    return json.loads((output / "audit.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def grey(value: float, *, done: bool, same: bool) -> LabelledCase:
    target = torch.full((3, 4, 4), 0.5)
    return LabelledCase(torch.full((3, 4, 4), 0.3), torch.full((3, 4, 4), value), "dye", "hats", "", done, same, target)


def test_a_judge_in_closed_form_gets_the_marks_it_deserves() -> None:
    judge = ScriptedJudge((0.5, 0.5, 0.5), tolerance=0.2, sharpness=100.0)
    cases = [grey(0.5, done=True, same=True), grey(0.3, done=False, same=True), grey(0.9, done=False, same=False)]
    found = examine(judge, cases, None, Settings(starts=2, steps=4, batch=2), CPU)
    edit, identity = (found.overall.questions[kind].measures for kind in ("edit", "identity"))
    # |m - target|² is 0, 0.12 and 0.48, the mean square of the change 0.04, 0 and 0.36, against a tolerance of 0.04.
    assert (edit.accuracy, edit.auc, edit.yes_bias) == (1.0, 1.0, 0.0)
    assert edit.mean_log_odds == pytest.approx((4 - 8 - 44) / 3, abs=1e-3)
    assert identity.auc == 1.0
    assert found.overall.all.wording is not None
    assert (found.overall.all.wording.flips, found.overall.all.wording.spread) == (0.0, pytest.approx(0, abs=1e-4))
    assert list(found.directions) == ["pixels"]
    assert found.directions["pixels"].all.edit is not None
    assert found.directions["pixels"].all.edit.mean == pytest.approx(1.0)
    assert found.ascents is not None
    assert found.ascents.all.distance.after < 0.6 * found.ascents.all.distance.before, "identity holds it back"
    assert not [line for line in found.warnings if "gradient" in line or "ascending" in line]


def test_a_judge_whose_gradient_misleads_is_warned_of() -> None:
    judge = ScriptedJudge((0.0, 0.0, 0.0), tolerance=0.1, sharpness=100.0)
    cases = [grey(0.5, done=True, same=False), grey(0.3, done=False, same=True)]
    found = examine(judge, cases, None, Settings(starts=1, steps=4), CPU)
    assert found.overall.questions["edit"].measures.accuracy == 0.5
    assert any(line.startswith("accuracy below 0.95: hats edit 0.500 of 2") for line in found.warnings)
    assert any("in pixels, the gradient" in line and line.endswith("hats") for line in found.warnings)
    assert any("does not lead to the right answer" in line for line in found.warnings)


def test_without_starts_or_steps_nothing_is_ascended() -> None:
    judge, cases = ScriptedJudge((0.5, 0.5, 0.5)), [grey(0.3, done=False, same=True)]
    still = examine(judge, cases, None, Settings(starts=0), CPU)
    assert (still.directions, still.ascents) == ({}, None)
    pointing = examine(judge, cases, None, Settings(steps=0), CPU)
    assert list(pointing.directions) == ["pixels"]
    assert pointing.ascents is None


def test_the_tiny_judge_knows_more_than_its_gradient(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    audit("tiny:judge", folder, "tiny:base", Settings(starts=1, steps=3), output, as_json=False)
    shown, found = capsys.readouterr().out, written(output)
    for word in ("recolour", "nothing", "AUC", "reliability", "wording", "in latents", "audit.json", "report.html"):
        assert word in shown
    assert (found["judge"], found["base"], found["source"]) == ("tiny:judge", "tiny:base", str(folder))
    assert (found["cases"], found["seed"], found["per_category"], found["questions"]) == (6, None, None, "v2")
    assert found["seconds"] > 0
    assert found["overall"]["all"]["measures"]["accuracy"] > 0.7
    assert found["categories"]["recolour"]["questions"]["edit"]["measures"]["count"] == 3
    assert set(found["categories"]["nothing"]["questions"]) == {"identity"}
    assert set(found["directions"]) == {"pixels", "latents"}
    assert found["ascents"]["space"] == "latents"
    assert found["ascents"]["all"]["count"] == 1
    assert found["ascents"]["all"]["success"] is None
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * len(found["mistakes"])
    assert "in latents" in page


def test_the_precision_asked_for_is_the_judges_and_is_told(folder: Path, tmp_path: Path) -> None:
    seen = []

    def spy(*args: Any) -> Any:
        seen.append(load_judge(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_judge", spy)
        audit("tiny:judge", folder, None, Settings(starts=0), tmp_path, Place("cpu", "bfloat16"), as_json=True)
    assert next(seen[0].model.parameters()).dtype == torch.bfloat16
    found = written(tmp_path)
    assert (found["device"], found["dtype"], found["bits"]) == ("cpu", "bfloat16", None)


def test_bits_beside_the_gpu_and_unknown_devices_are_told_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for place, words in ((Place("cpu", bits=4), "leave out --bits"), (Place("tpu"), "choose auto, cpu")):
        with pytest.raises(ConfigError, match=words):
            audit("tiny:judge", folder, None, Settings(starts=0), tmp_path / "out", place, as_json=True)
    assert not (tmp_path / "out").exists()


def test_what_is_undefined_is_null_and_a_dash(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = (folder / "cases.jsonl").read_text().split("\n")[0]
    (folder / "cases.jsonl").write_text(right)
    audit("tiny:judge", folder, None, Settings(starts=0), tmp_path / "out", as_json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed) == written(tmp_path / "out")
    found = written(tmp_path / "out")
    assert found["overall"]["all"]["measures"]["auc"] is None
    assert found["ascents"] is None
    audit("tiny:judge", folder, None, Settings(starts=0), tmp_path / "out", as_json=False)
    [row] = [line for line in capsys.readouterr().out.splitlines() if "│ recolour │ identity" in line]
    assert [cell.strip() for cell in row.split("│")][5] == "-"


def test_a_judge_of_another_family(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = _families()
    judge = tmp_path / "qwen3_vl"
    families.CASES["qwen3_vl"].save(judge)
    audit(str(judge), folder, None, Settings(starts=1, steps=2, batch=4), tmp_path / "out", as_json=False)
    found = written(tmp_path / "out")
    assert found["base"] is None
    assert list(found["directions"]) == ["pixels"]
    assert -1 <= found["directions"]["pixels"]["all"]["edit"]["mean"] <= 1
    assert found["ascents"]["space"] == "pixels"


def _families() -> Any:
    """The random checkpoints of tests/judges."""
    name = "nopair_test_families"
    if name not in sys.modules:
        path = Path(__file__).parents[2] / "judges" / "families.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_errors_come_before_the_work_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        audit("tiny:judge", tmp_path, None, Settings(), tmp_path / "out", as_json=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        audit("tiny:judge", folder, None, Settings(), tmp_path / "file", as_json=False)


def test_a_base_that_cannot_take_the_images_says_so(folder: Path, tmp_path: Path) -> None:
    for name in ("reference", "edited", "target"):
        save_image(torch.rand(3, 50, 67), folder / f"0-{name}.png")
    with pytest.raises(ConfigError, match="67"):
        audit("tiny:judge", folder, "tiny:base", Settings(starts=1, steps=1), tmp_path / "out", as_json=False)


@pytest.mark.parametrize("family", ["zimage", "flux2", "qwen_image", "sd3"])
def test_of_a_base_only_the_autoencoder_goes_to_the_device(tiny_bases: Path, family: str) -> None:
    whole, left = load_backbone(tiny_bases / family), autoencoder_of(str(tiny_bases / family), CPU)
    assert not any(weight.numel() for weight in left.transformer.parameters())
    assert left.latent_shape(32, 64) == whole.latent_shape(32, 64)
    pixels = torch.rand(1, 3, 32, 64)
    latents = left.encode_image(pixels)
    assert torch.equal(latents, whole.encode_image(pixels))
    assert torch.equal(left.decode_latents(latents), whole.decode_latents(latents))
    with pytest.raises((AttributeError, StopIteration)):
        left.encode_text(["a cat"])
    codecs: Any = left
    held = [part for part in vars(codecs).values() if isinstance(part, torch.nn.Module) and part is not codecs.vae]
    assert not any(weight.numel() for part in held for weight in part.parameters())


def test_shapes_world_cases_are_measured_with_the_oracle() -> None:
    judge = ScriptedJudge((0.5, 0.5, 0.5))
    found = examine(judge, shapes_cases(1, 1), None, Settings(starts=1, steps=1), CPU)
    assert set(found.attempts) == {"right", "unchanged", "wrong", "misshapen", "half", "over", "nudged",
                                   "smeared", "corrupted", "unrelated"}  # fmt: skip
    assert found.ascents is not None
    assert found.ascents.all.success is not None
    assert found.ascents.all.success.before == 0
    assert found.attempts["unrelated"].questions["identity"].measures.auc is None


def test_kinds_of_edit_can_be_named(tmp_path: Path) -> None:
    audit(
        "tiny:judge-32", None, None, Settings(0, 2, 0, 0, categories=("free-form", "free-form")), tmp_path, as_json=True
    )
    assert list(written(tmp_path)["categories"]) == ["free-form"]
    with pytest.raises(ConfigError, match="no category 'sing'; choose of: recolour, "):
        audit("tiny:judge-32", None, None, Settings(categories=("sing",)), tmp_path / "none", as_json=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    columns = ("category", *(f"a measure {n}" for n in range(9)))
    table = Table("of [/b] all", columns, ((("[draft] x", *["-0.123"] * 9),),))
    for part in drawn(table, width):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert told.count("-0.123") == 9
    assert "…" not in told
    assert told.count("[draft] x") == told.count("of [/b] all") == told.count("category") >= 1
    assert max(map(len, told.splitlines())) <= width


def test_names_that_are_no_words_of_a_terminal_cost_no_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fo[").mkdir()
    odd = folder.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/fo[/x]lder \xff")))
    lines = [json.loads(line) | {"attempt": "[/b] half"} for line in (odd / "cases.jsonl").read_text().splitlines()]
    (odd / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    audit("tiny:judge", odd, None, Settings(starts=0), tmp_path / "out", as_json=False)
    told = "".join(capsys.readouterr().out.split())
    assert "fo[/x]lder\ufffd" in told
    assert "[/b]half" in told
    assert written(tmp_path / "out")["source"].endswith("fo[/x]lder \ufffd")
