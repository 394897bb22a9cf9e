"""Which family a judge is of, and whether an editor was trained under one."""

from pathlib import Path

import pytest

from nopair.editor import Settings
from nopair.evaluation.charts import bar_chart
from nopair.evaluation.scoreboard.families import families, training_judges


@pytest.mark.parametrize(
    ("name", "kin"),
    [
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", {"qwen"}),
        ("/models/InternVL3-14B-hf", {"internvl"}),
        ("llava_onevision 0a1b bf16", {"llava"}),
        ("llava-onevision-qwen2-7b-ov", {"llava", "qwen"}),
        ("gpt-4.1-2025-04-14", {"gpt"}),
        ("o4-mini", {"gpt"}),
        ("gemini-2.5-flash", {"gemini"}),
        ("AIDC-AI/Ovis2-8B", {"ovis"}),
        ("provisional-judge", set()),
        ("my-judge", set()),
        ("", set()),
    ],
)
def test_names_tell_families(name: str, kin: set[str]) -> None:
    assert families(name) == kin
    assert families(name, "claude-4") == kin | {"claude"}


def test_an_editor_tells_its_judges_and_so_does_a_recipe_beside_it(tmp_path: Path) -> None:
    assert training_judges("tiny:editor", None) == ("tiny:judge (llava_onevision)", "tiny:judge-2 (llava_onevision)")
    assert training_judges(None, None) is None
    editor = tmp_path / "editor"
    editor.mkdir()
    settings = Settings(steps=4, shift=3.0, height=64, width=64, questions="v1")
    (editor / "nopair.json").write_text(settings.model_dump_json(exclude={"judges"}))
    assert training_judges(str(editor), None) is None
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("judge: {path: tiny:judge}\nensemble:\n- path: /gone/Qwen3-VL\n- weight: 1\n")
    assert training_judges(str(editor), None) == ("tiny:judge (llava_onevision)", "Qwen3-VL")
    assert training_judges(str(editor), "told") == ("told",)
    for text in ("[]", "{", "judge: 3\n", "judge: {path: 4}\n"):
        recipe.write_text(text)
        assert training_judges(str(editor), None) is None


def test_bars_show_every_value_and_miss_none() -> None:
    chart = bar_chart("<O>", {"add": {"a": 10.0, "b": 5.0}, "style": {"a": None, "b": 0.0}}, 10.0)
    assert chart.count("<rect") == 4
    widths = [float(part.partition('"')[0]) for part in chart.split(' width="')[1:]]
    assert widths[0] == pytest.approx(2 * widths[1])
    assert widths[2:] == [0.0, 0.0]
    assert "style, a: missing" in chart
    assert "&lt;O&gt;" in chart
    assert bar_chart("none", {}, 10.0).endswith("</svg>")
