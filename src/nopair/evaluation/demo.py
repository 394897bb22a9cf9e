"""The demo: train an editor without pairs in front of the user's eyes, and report what came of it."""

import resource
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from nopair.config import Recipe, load_recipe
from nopair.data.files import check_folder, make_folder
from nopair.editor import SETTINGS_FILE
from nopair.evaluation.report import write_report
from nopair.evaluation.results import Cost, Example, Report
from nopair.evaluation.world import Evaluation, evaluate_editor, table
from nopair.planning.ledger import ATTENTION
from nopair.settings import path_override
from nopair.training.folder import remove_run
from nopair.training.loop import run_phases
from nopair.training.metrics import read, say
from nopair.training.phase import Phase
from nopair.training.run import EDITOR, Training, compose
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, Edit
from nopair.world.render import render

PER_CATEGORY: Final = 24
"""Held-out scenes for each category, scored after warm-up and after training."""
SHOWN: Final = 2
"""Scenes of each category in the picture."""
ANEW: Final = "run the same command again to start anew"
"""What a stopped demo says: the figures of its first half are gone, so it cannot go on."""


def demo(output: Path, seed: int, overrides: Sequence[str] = ()) -> None:
    """Run the `demo` recipe and write the editor, report.html, grid.png and results.json into `output`.

    An earlier demo in `output` is replaced.

    Raises:
        NopairError: see `nopair.errors`; Interrupted after a signal.
    """
    recipe = load_recipe("demo", [f"seed={seed}", path_override("output", output / "training"), *overrides])
    console = Console()
    directory = Path(recipe.output)
    make_folder(output)
    check_folder(output / EDITOR, SETTINGS_FILE)
    remove_run(directory)
    began = time.monotonic()
    training = compose(recipe)
    edits = held_out_cases(seed, PER_CATEGORY)

    console.print(f"warming up: {recipe.warmup.lesson}")
    run = partial(run_phases, recipe=recipe, directory=directory, console=console, stopped=ANEW)
    run((training.warmup,), resume=None)
    before = evaluate_editor(training.warm_editor(), training.judge, edits, seed)
    console.print(table(f"after warm-up, {len(edits)} held-out edits", before.verdict))

    console.print("training without pairs: judge and teacher, no edited image")
    run(training.phases, resume="latest")
    editor = training.editor()
    after = evaluate_editor(editor, training.judge, edits, seed)
    seconds = time.monotonic() - began
    console.print(table(f"after training, {len(edits)} held-out edits", after.verdict))

    cost = Cost(seconds, _flops(training.phases), peak_memory_bytes())
    write_report(output, _report(recipe, training, before, after, edits, cost))
    editor.save(output / EDITOR)  # last: it is large, and a full disk is to cost nothing else
    console.print(f"{seconds:.0f} s, {cost.flops:.3g} FLOPs, {cost.peak_memory_bytes / 2**30:.2f} GiB at most")
    say(console, f"report: {output / 'report.html'}   editor: {output / EDITOR}")


def _flops(phases: Sequence[Phase]) -> float:
    """Floating-point operations of all steps: one more step of each phase is counted. Spoils the phases' models."""
    total = 0.0
    for phase in phases:
        if phase.steps:
            phase.begin()
            with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
                phase.step(0)
            phase.end()
            total += float(counter.get_total_flops()) * phase.steps
    return total


def peak_memory_bytes() -> int:
    """The most memory this process has held at any time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _report(
    recipe: Recipe, training: Training, before: Evaluation, after: Evaluation, edits: Sequence[Edit], cost: Cost
) -> Report:
    base = sum(parameter.numel() for parameter in training.backbone.transformer.parameters())
    shown = range(min(SHOWN * len(CATEGORIES), len(edits)))
    return Report(
        title="An image editor trained without before/after pairs",
        summary=(
            "A tiny text-to-image model became an instruction-following editor. It saw unlabelled scenes, "
            "instructions and "
            "captions; a vision-language judge answered Yes or No; no edited image was ever shown. Scores are the "
            "oracle's, on scenes with combinations of attributes that training never contained."
        ),
        facts={
            "base": f"{recipe.base.path}, {base / 1e6:.1f}M parameters",
            "judge": recipe.judge.path,
            "warm-up": f"{recipe.warmup.steps} steps of {recipe.warmup.batch}, {recipe.warmup.lesson}",
            "training": f"{recipe.npedit.steps} steps of {recipe.npedit.batch}",
            "sampling steps": str(recipe.sampling.steps),
            "held-out scenes": str(len(edits)),
            "seed": str(recipe.seed),
        },
        curves=_curves(Path(recipe.output) / "metrics.jsonl"),
        examples=[
            Example(
                reference=render(edits[i].source),
                instruction=edits[i].instruction,
                category=edits[i].category,
                before=before.outputs[i],
                after=after.outputs[i],
                target=render(edits[i].target),
                before_marks=before.marks(i),
                after_marks=after.marks(i),
            )
            for i in shown
        ],
        before=before.verdict,
        after=after.verdict,
        cost=cost,
        scenes=len(edits),
        seed=recipe.seed,
    )


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    names = {
        ("warmup", "loss"): "warm-up loss",
        ("npedit", "judge_edit"): "judge: edit done",
        ("npedit", "judge_identity"): "judge: rest unchanged",
        ("npedit", "dmd"): "distribution matching",
        ("npedit", "fake"): "fake-score loss",
    }
    curves: dict[str, list[tuple[float, float]]] = {title: [] for title in names.values()}
    for record in read(path):
        for (phase, key), title in names.items():
            if record.phase == phase and key in record.values:
                curves[title].append((float(record.step), record.values[key]))
    return {title: points for title, points in curves.items() if points}
