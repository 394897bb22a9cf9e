"""The shapes-world benchmark: an editor on held-out edits, scored by the oracle, with the judge's verdict beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nopair.backbones.zimage import ZImageBackbone
from nopair.data.files import make_folder, write_atomic
from nopair.device import choose_device, enough_memory
from nopair.editor import Editor, read_settings
from nopair.errors import ConfigError, ModelError
from nopair.evaluation.results import Marks, Verdict, verdict_json
from nopair.judges.base import Judge
from nopair.judges.load import load_judge
from nopair.judges.questions import questions_for
from nopair.precision import AUTO, dtype_called
from nopair.weights import resolve
from nopair.world.cases import chosen, held_out_cases
from nopair.world.edits import CATEGORIES, FREE_FORM, Edit
from nopair.world.oracle import Score, score_batch, summarise
from nopair.world.proof import error_rates
from nopair.world.render import render_batch
from nopair.world.scenes import SIZE

BATCH = 32


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outputs, scores and means of one editor on some edits, in the same order."""

    edits: tuple[Edit, ...]
    outputs: Float[Tensor, "batch 3 height width"]
    scores: tuple[Score, ...]
    judged: tuple[dict[str, bool], ...]
    verdict: Verdict

    def marks(self, index: int) -> Marks:
        """One sample's marks."""
        score, judged = self.scores[index], self.judged[index]
        return Marks(
            score.success,
            score.preservation,
            score.realism,
            score.overall,
            float(judged["edit"]) if "edit" in judged else None,
            float(judged["identity"]) if "identity" in judged else None,
        )


def evaluate_editor(editor: Editor, judge: Judge, edits: Sequence[Edit], seed: int) -> Evaluation:
    """Edit the source of every edit, score the outputs. Sample i's noise depends on (seed, i) only.

    Raises:
        ModelError: an output has values that are not finite.
    """
    outputs = []
    for start in range(0, len(edits), BATCH):
        chunk = edits[start : start + BATCH]
        references = render_batch([edit.source for edit in chunk])
        seeds = [(seed * 1_000_003 + start + i) % 2**63 for i in range(len(chunk))]
        edited = editor.edit(references, [edit.instruction for edit in chunk], seeds)
        if not bool(edited.isfinite().all()):
            raise ModelError(
                "the editor gives pixels that are not finite: its weights are damaged, or its training went astray; "
                "copy it again, or train it with a lower lr"
            )
        outputs.append(edited)
    return evaluate_outputs(torch.cat(outputs), judge, edits)


def evaluate_outputs(outputs: Float[Tensor, "batch 3 height width"], judge: Judge, edits: Sequence[Edit]) -> Evaluation:
    """Score given outputs, one per edit."""
    scores, judged = [], []
    for start in range(0, len(edits), BATCH):
        chunk, images = edits[start : start + BATCH], outputs[start : start + BATCH]
        scores.extend(score_batch(chunk, images))
        judged.extend(ask(judge, chunk, images))
    verdict = _verdict(edits, scores, judged)
    return Evaluation(tuple(edits), outputs, tuple(scores), tuple(judged), verdict)


@torch.no_grad()
def ask(judge: Judge, edits: Sequence[Edit], outputs: Float[Tensor, "batch 3 height width"]) -> list[dict[str, bool]]:
    """Whether the judge is content, by kind of question, for every edit."""
    questions = [questions_for(edit.category, edit.instruction, edit.subject) for edit in edits]
    odds = judge.yes_minus_no(render_batch([edit.source for edit in edits]), outputs, questions)
    return [
        {question.kind: bool((odds[i, j] > 0) == question.wants_yes) for j, question in enumerate(row)}
        for i, row in enumerate(questions)
    ]


def _verdict(edits: Sequence[Edit], scores: Sequence[Score], judged: Sequence[dict[str, bool]]) -> Verdict:
    means: Any = summarise(edits, scores)
    categories = {}
    for name, row in means["categories"].items():
        own = [answers for edit, answers in zip(edits, judged, strict=True) if edit.category == name]
        categories[name] = _marks(row, _share(own, "edit"), _share(own, "identity"))
    shares = {
        kind: [value for marks in categories.values() if (value := getattr(marks, f"judge_{kind}")) is not None]
        for kind in ("edit", "identity")
    }
    total = _marks(means, *(sum(values) / len(values) if values else None for values in shares.values()))
    return Verdict(total, categories)


def _share(answers: Sequence[dict[str, bool]], kind: str) -> float | None:
    asked = [answer[kind] for answer in answers if kind in answer]
    return sum(asked) / len(asked) if asked else None


def _marks(row: Any, judge_edit: float | None, judge_identity: float | None) -> Marks:
    return Marks(row["success"], row["preservation"], row["realism"], row["overall"], judge_edit, judge_identity)


def table(title: str, verdict: Verdict) -> Table:
    """Marks per category, the oracle's, each with the judge's verdict on the same in the column after it."""
    drawn = Table(title=Text(title))
    for column in ("category", "success", "(judge)", "preservation", "(judge)", "realism", "overall"):
        drawn.add_column(column, justify="left" if column == "category" else "right")
    for name, marks in [*verdict.categories.items(), ("mean", verdict.total)]:
        values = (
            marks.success,
            marks.judge_edit,
            marks.preservation,
            marks.judge_identity,
            marks.realism,
            marks.overall,
        )
        drawn.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return drawn


def print_oracle(count: int) -> None:
    """Print the oracle's error rates on rendered, slightly noisy and autoencoded images."""
    backbone = ZImageBackbone.load(resolve("tiny:base"))

    @torch.no_grad()
    def reconstruct(pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        parts = [backbone.decode_latents(backbone.encode_image(chunk)) for chunk in pixels.split(BATCH)]
        return torch.cat(parts).clamp(0, 1)

    for categories, name in ((CATEGORIES, "local edits"), ((FREE_FORM,), "free-form edits")):
        _print_rates(error_rates(reconstruct, 0, count, categories), f"the oracle on {count} {name}")


def _print_rates(rows: Mapping[str, Mapping[str, float]], title: str) -> None:
    drawn = Table(title=f"{title}: rates of error, and mean scores of right answers")
    drawn.add_column("measure")
    for name in rows:
        drawn.add_column(name, justify="right")
    for measure in next(iter(rows.values())):
        drawn.add_row(measure, *(f"{row[measure]:.4f}" for row in rows.values()))
    Console().print(drawn)


def evaluate(
    model: str,
    per_category: int,
    seed: int,
    output: Path,
    device: str = "cpu",
    dtype: str = AUTO,
    categories: Sequence[str] = CATEGORIES,
    judge: str = "tiny:judge",
) -> None:
    """Score the editor in `model` and write `<output>/evaluation.json`; `device` is as `choose_device` takes it,
    `dtype`, the editor's precision, as `dtype_called` does.

    The oracle's scores depend on no judge; `judge`, a model folder, is who is asked beside it.

    Raises:
        ConfigError: an unknown category, device or precision, or an editor of another size than the shapes world's.
        ModelError, JudgeError: editor or judge cannot be used.
        OutputError: the file cannot be written.
        MemoryShortError: the device is too small.
    """
    kinds, precision, place = chosen(categories), dtype_called(dtype), choose_device(device)
    make_folder(output)
    size = read_settings(resolve(model))
    if (size.height, size.width) != (SIZE, SIZE):
        raise ConfigError(
            f"{model} edits at {size.height}x{size.width} pixels, but the shapes world has {SIZE}x{SIZE}; "
            "score it on a benchmark: --benchmark folder:PLACE (docs/evaluation.md)"
        )
    editor = Editor.load(model, place, precision)
    edits = held_out_cases(seed, per_category, kinds)
    with enough_memory("name a smaller judge (--judge), or another device (--device cpu)"):
        asked = load_judge(resolve(judge)).to(place)
        evaluation = evaluate_editor(editor, asked, edits, seed)
    Console().print(table(f"{model} on {len(edits)} held-out edits", evaluation.verdict))
    named = {"model": model, "judge": judge, "scenes": len(edits), "seed": seed}
    text = json.dumps(named | verdict_json(evaluation.verdict), indent=2)
    write_atomic(output / "evaluation.json", text.encode() + b"\n")
