"""`nopair evaluate --benchmark dreambooth:` as a whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nopair.data.images import load_image, save_image
from nopair.evaluation.scoreboard.command import Request, evaluate_benchmark
from nopair.evaluation.scorers import similarity


def test_subjects_are_compared_by_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DreamBooth's set as published, with stand-ins for the encoders: the mean of red, and nothing for the words."""

    class Red:
        names, version = ("DINO",), "red"

        def __call__(self, output: Path, photos: Any, caption: str) -> dict[str, float | None]:
            return {"DINO": float(load_image(output)[0].mean())}

    class Wordless:
        names, version = ("CLIP-I", "CLIP-T"), "wordless"

        def __call__(self, output: Path, photos: Any, caption: str) -> dict[str, float | None]:
            return {"CLIP-I": 0.5, "CLIP-T": None}

    monkeypatch.setattr(similarity, "load_dino", lambda folder, device: Red())
    monkeypatch.setattr(similarity, "load_clip", lambda folder, device: Wordless())
    lists = "Object Prompts\n'a {0} {1} x'.format(a, b)\nLive Subject Prompts\n'y {0}'.format(a)\n"
    text = f"subject_name,class\ncan,can\n{lists}"
    (tmp_path / "dataset" / "can").mkdir(parents=True)
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(text)
    save_image(torch.zeros(3, 8, 8), tmp_path / "dataset" / "can" / "00.jpg")
    (tmp_path / "theirs" / "can").mkdir(parents=True)
    save_image(torch.ones(3, 8, 8), tmp_path / "theirs" / "can" / "00.png")
    request = Request(
        benchmark=f"dreambooth:{tmp_path / 'dataset'}",
        editors=(f"outputs:{tmp_path / 'theirs'}",),
        judges=(),
        features=("dino:anywhere", "clip:anywhere"),
        scorer=None,
        rubric=None,
        languages=(),
        per_category=None,
        output=tmp_path / "run",
        device="cpu",
        dry_run=False,
        command="",
    )
    evaluate_benchmark(request)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["scores"][0]["total"] == {
        "DINO": {"mean": 1.0, "count": 1, "missing": 0},
        "CLIP-I": {"mean": 0.5, "count": 1, "missing": 0},
        "CLIP-T": {"mean": None, "count": 0, "missing": 1},
    }
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    shown = " ".join(capsys.readouterr().out.split())
    for measure in ("DINO", "CLIP-I", "CLIP-T"):
        assert f"<figcaption>{measure} by category" in page
        assert f"{measure} by category" in shown
    assert "<td>DINO 1, CLIP-I 1, CLIP-T 0</td><td>DINO 0, CLIP-I 0, CLIP-T 1</td>" in page
    assert any("no CLIP-T at all in can" in warning for warning in results["warnings"])
    (judge,) = results["judges"]
    assert judge.pop("longest_side") is None
    assert judge == {"name": "features", "version": "red, wordless", "answered_as": [], "model": "", "temperature": 0}
