"""Model cards of the tiny checkpoints: what each was trained on, for how long, and its measured quality."""

import math
from pathlib import Path
from typing import Final

from nopair.backbones.zimage import ZImageBackbone
from nopair.config import Recipe
from nopair.editor import Editor
from nopair.evaluation.results import Verdict
from nopair.evaluation.world import evaluate_editor
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.tiny.base import BaseSettings
from nopair.tiny.judge import JudgeSettings
from nopair.tiny.quality import JudgeQuality, base_quality, drawn_quality, judge_quality, reconstruction_psnr
from nopair.world.attempts import KINDS
from nopair.world.cases import held_out_cases

ENOUGH: Final = 0.95
"""Least accuracy that makes a judge's gradient worth following."""
EDITOR_CASES: Final = 32
"""Held-out scenes per category on an editor's card."""

_HEAD: Final = """---
license: apache-2.0
library_name: {library}
pipeline_tag: {task}
tags: [nopair, shapes-world]
---

# {title}

"""


def base_card(backbone: ZImageBackbone, settings: BaseSettings) -> str:
    """Autoencoder PSNR and the oracle's reading of samples."""
    psnr = reconstruction_psnr(backbone)
    quality = base_quality(backbone)
    return _HEAD.format(library="diffusers", task="text-to-image", title="nopair tiny base") + (
        "A Z-Image transformer with a Qwen3 text encoder and an AutoencoderKL at toy size, for 64x64 scenes of the "
        "shapes "
        "world. Stock `diffusers.ZImagePipeline` loads it. It stands for a pretrained model and knows all "
        "combinations of "
        "attributes.\n\n"
        f"Trained by `nopair tiny build base`: {settings.steps} steps of {settings.batch} freshly drawn scenes with "
        "prompts in many wordings, words grounded in the patches they name; the text encoder along with it, with "
        "next-token prediction of prompts and instructions. Most steps show a reference as well: the photo itself, "
        "whole or damaged (a hole, colours lost, detail lost), to be restored by the prompt; some prompts tell a scene "
        "by an edit. It has never seen a scene before an edit together with the scene after it; after pretraining it "
        "nearly always copies a whole reference, whatever it is told.\n\n"
        "| measured on unseen draws | |\n|---|---|\n"
        f"| autoencoder, PSNR | {psnr:.1f} dB |\n"
        f"| attributes of things as the caption says | {quality.attributes:.3f} |\n"
        f"| background pattern and colour as the caption says | {quality.backgrounds:.3f} |\n"
        f"| whole caption right | {quality.captions:.3f} |\n"
        f"| realism of samples | {quality.realism:.3f} |\n\n"
        "Samples: 20 Euler steps, guidance 3; read by the oracle, which renders and compares and has no learned part.\n"
    )


def judge_card(folder: Path, base: Path, settings: JudgeSettings, made: str) -> str:
    """Accuracy by category, question and kind of attempt; `made` says by which command."""
    drawn = f", {settings.drawn} of those at a change drawn by the base" if settings.drawn else ""
    return _HEAD.format(library="transformers", task="image-text-to-text", title="nopair tiny judge") + (
        "A LLaVA-OneVision model at toy size that answers Yes or No about edits in the shapes world. Stock "
        "`transformers` loads it. Like any vision-language model it was trained on labelled examples: scenes, "
        f"attempts at edits ({', '.join(KINDS)}; "
        "two of three seen through the autoencoder, some with noise) and the answers to the questions of "
        "`nopair.judges.questions`.\n\n"
        f"{made}: {settings.steps} steps of {settings.batch} attempts{drawn}.\n\n" + judge_tables(folder, base)
    )


def judge_tables(folder: Path, base: Path) -> str:
    """Accuracy of a judge's folder in the shapes world, as Markdown; `base` paints two of three attempts."""
    judge, backbone = LlavaOnevisionJudge.load(folder), ZImageBackbone.load(base)
    quality = judge_quality(judge, backbone)
    return (
        f"Accuracy on unseen draws, all kinds of attempts equally often: **{quality.accuracy:.3f}**. "
        f"Below {ENOUGH} a judge's gradient is not worth following; such groups are marked.\n\n"
        + _judge_tables(quality)
        + _drawn_table(drawn_quality(judge, backbone))
    )


def _judge_tables(quality: JudgeQuality) -> str:
    parts = []
    for axis, name in ((0, "category"), (1, "question"), (2, "kind of attempt")):
        rows = "".join(f"| {key} | {value:.3f}{_mark(value)} |\n" for key, value in sorted(quality.by(axis).items()))
        parts.append(f"| {name} | accuracy |\n|---|---|\n{rows}")
    kinds = sorted({key[2] for key in quality.by_group})
    pairs = sorted({key[:2] for key in quality.by_group})
    lines = ["| category, question | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for category, question in pairs:
        cells = [quality.by_group.get((category, question, kind), (math.nan, 0)) for kind in kinds]
        shown = ["-" if not count else f"{value:.2f}{_mark(value)}" for value, count in cells]
        lines.append(f"| {category}, {question} | " + " | ".join(shown) + " |")
    return "\n".join(parts) + "\n" + "\n".join(lines) + "\n"


def _drawn_table(quality: JudgeQuality) -> str:
    lines = [
        "\nOf attempts that the base drew in one or two calls, or over a blend of two, as an editor in training would; "
        "the answers are the oracle's. (Not counted above.)\n",
        "| question | good by the oracle | bad by the oracle |",
        "|---|---|---|",
    ]
    for question in ("edit", "identity"):
        cells = []
        for answer in ("good", "bad"):
            groups = [group for key, group in quality.by_group.items() if key[1:] == (question, answer)]
            asked = sum(count for _, count in groups)
            accuracy = sum(value * count for value, count in groups) / asked if asked else math.nan
            cells.append(f"{accuracy:.3f}{_mark(accuracy)} of {asked}" if asked else "-")
        lines.append(f"| {question} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mark(value: float) -> str:
    return "" if value >= ENOUGH else " (!)"


def editor_card(folder: Path, judge: Path, recipe: Recipe) -> str:
    """Held-out scores, the oracle's and the judge's side by side."""
    edits = held_out_cases(1, EDITOR_CASES)
    evaluation = evaluate_editor(Editor.load(folder), LlavaOnevisionJudge.load(judge), edits, 1)
    return _HEAD.format(library="diffusers", task="image-to-image", title="nopair tiny editor") + (
        "The tiny base, made an instruction-following editor without before/after pairs: "
        f"{recipe.warmup.steps} steps of {recipe.warmup.batch} of {recipe.warmup.lesson}, then {recipe.npedit.steps} "
        f"steps of {recipe.npedit.batch} under the tiny judge and the base as teacher (recipe `{recipe.name}`). "
        f"{recipe.sampling.steps} sampling steps.\n\n"
        f"On {len(edits)} held-out edits (`nopair evaluate --seed 1 --per-category {EDITOR_CASES}`):\n\n"
        + _verdict_table(evaluation.verdict)
    )


def _verdict_table(verdict: Verdict) -> str:
    lines = ["| category | success | judge: edit | preservation | judge: rest | realism | overall |", "|---" * 7 + "|"]
    for name, marks in [*verdict.categories.items(), ("**mean**", verdict.total)]:
        values = (
            marks.success,
            marks.judge_edit,
            marks.preservation,
            marks.judge_identity,
            marks.realism,
            marks.overall,
        )
        lines.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines) + "\n"


def write_card(folder: Path, text: str) -> None:
    """Write README.md."""
    (folder / "README.md").write_text(text, encoding="utf-8")
