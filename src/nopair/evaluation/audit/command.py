"""`nopair judge audit`: opens the parts, measures, prints and writes audit.json and report.html."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from rich.console import Console

from nopair.backbones.base import Backbone
from nopair.backbones.load import load_backbone
from nopair.data.files import make_folder, shown, write_atomic
from nopair.device import choose_device, enough_memory
from nopair.evaluation.audit.answers import ask
from nopair.evaluation.audit.cases import FolderCases, LabelledCase, Repaint, shapes_cases
from nopair.evaluation.audit.compass import PIXELS, bearings, climb, latents_of, starts_of
from nopair.evaluation.audit.report import render_audit
from nopair.evaluation.audit.summary import (
    MISTAKES,
    About,
    Findings,
    ascents,
    asked,
    asked_by,
    directions,
    mistakes,
    warnings,
    wordings,
)
from nopair.evaluation.audit.tables import drawn, tables
from nopair.judges.base import Judge
from nopair.judges.load import load_judge
from nopair.judges.questions import VERSION
from nopair.precision import Bits, refuse_bits_off_card
from nopair.weights import resolve
from nopair.world.cases import chosen
from nopair.world.edits import CATEGORIES

FILE: Final = "audit.json"
REPORT: Final = "report.html"
SHAPES: Final = "shapes world"
SHAPES_BASE: Final = "tiny:base"
"""Base whose autoencoder paints the shapes world, unless another one is named."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure.

    Attributes:
        seed, per_category, categories: of the shapes world's cases.
        starts: ascents from unedited references, for each category; 0 leaves gradients out.
        steps: of an ascent; 0 leaves ascents out.
        batch: cases the judge is asked about at a time.
    """

    seed: int = 0
    per_category: int = 16
    starts: int = 8
    steps: int = 20
    batch: int = 16
    categories: Sequence[str] = CATEGORIES


@dataclass(frozen=True, slots=True)
class Place:
    """Where models compute (as `choose_device` takes it), and in which precision the judge does.

    With `bits`, its language model is quantised; 4 need a GPU. The base keeps float32.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    bits: Bits | None = None


ANYWHERE: Final = Place()


def audit(
    judge: str,
    folder: Path | None,
    base: str | None,
    settings: Settings,
    output: Path,
    place: Place = ANYWHERE,
    *,
    as_json: bool,
) -> None:
    """Audit the judge called `judge`; print tables, or with `as_json` audit.json's text; write that and report.html.

    Cases are those of `folder`, or the shapes world's, painted by the autoencoder of `base` (`SHAPES_BASE` by default).

    Raises:
        ModelError, JudgeError: a model cannot be used.
        MissingExtraError: `bits` without bitsandbytes.
        MemoryShortError: the device is too small.
        DataError, ImageError: a case cannot be used.
        ConfigError: an unknown category; the base cannot take images of the cases' size; there is no such device, or
            `bits` where there is a GPU and the device is another.
        OutputError: `output` cannot be written.
    """
    listed = None if folder is None else FolderCases(folder)
    categories = chosen(settings.categories)
    base = SHAPES_BASE if base is None and listed is None else base
    device = _device(place)
    with enough_memory("lower --batch, or the judge's precision with --dtype and --bits"):
        asked_one = load_judge(resolve(judge), getattr(torch, place.dtype), place.bits).to(device)
        backbone = None if base is None else autoencoder_of(base, device)
        make_folder(output)
        began = time.monotonic()
        repaint = None if backbone is None else repainting(backbone, device)
        cases: Sequence[LabelledCase] = (
            shapes_cases(settings.seed, settings.per_category, repaint, categories) if listed is None else listed
        )
        found = examine(asked_one, cases, backbone, settings, device)
    about = About(
        judge=shown(judge),
        base=None if base is None else shown(base),
        source=SHAPES if folder is None else shown(str(folder)),
        cases=len(cases),
        seed=settings.seed if listed is None else None,
        per_category=settings.per_category if listed is None else None,
        questions=VERSION,
        device=str(device),
        dtype=place.dtype,
        bits=place.bits,
        seconds=time.monotonic() - began,
    )
    written = dataclasses.asdict(about) | dataclasses.asdict(found)
    text = json.dumps(written, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(output / FILE, text.encode("utf-8"))
    write_atomic(output / REPORT, render_audit(about, found, cases).encode("utf-8"))
    if as_json:
        Console().out(text, end="", highlight=False)
    else:
        _show(about, found, output)


def examine(
    judge: Judge, cases: Sequence[LabelledCase], backbone: Backbone | None, settings: Settings, device: torch.device
) -> Findings:
    """Ask and measure.

    Ascents run where an editor's own gradient would: in the latents of `backbone`, or in pixels if there is none.

    Raises:
        JudgeError: the judge cannot be asked, or answers with values that are not finite.
        ConfigError: the base cannot take images of the cases' size.
    """
    starts = starts_of(cases, settings.starts, settings.batch, device) if settings.starts else []
    if backbone is not None:
        for each in starts:
            backbone.latent_shape(*each.references.shape[-2:])  # an autoencoder might cut the image instead
    answers = ask(judge, cases, settings.batch, device)
    spaces = [PIXELS, *([] if backbone is None else [latents_of(backbone)])]
    pointing = {
        space.name: directions([bearing for each in starts for bearing in bearings(judge, each, space)])
        for space in spaces
        if starts
    }
    climbed_in = spaces[-1]
    climbs = [ended for each in starts if settings.steps for ended in climb(judge, each, climbed_in, settings.steps)]
    climbed = ascents(climbed_in.name, settings.steps, climbs) if climbs else None
    categories = asked_by(answers, lambda answer: answer.category)
    return Findings(
        overall=asked(answers),
        categories=categories,
        attempts=asked_by(answers, lambda answer: answer.attempt),
        wordings=wordings(answers),
        mistakes=mistakes(answers, MISTAKES),
        directions=pointing,
        ascents=climbed,
        warnings=warnings(categories, pointing, climbed),
    )


def _device(place: Place) -> torch.device:
    device = choose_device(place.device)
    refuse_bits_off_card(place.bits, device, "--bits")
    return device


def autoencoder_of(base: str, device: torch.device) -> Backbone:
    """A base in float32 whose autoencoder alone lies on the device: what it has to say of texts and noise is gone.

    Raises:
        ModelError: it cannot be used.
    """
    backbone = load_backbone(resolve(base))
    backbone.drop_text_encoder()
    for weight in backbone.transformer.parameters():  # the modules stay, as they tell which sizes the base takes
        weight.data = torch.empty(0)
    return backbone.to(device)


def repainting(backbone: Backbone, device: torch.device) -> Repaint:
    """Images as the backbone's autoencoder paints them."""

    @torch.no_grad()
    def repaint(pixels: torch.Tensor) -> torch.Tensor:
        return backbone.decode_latents(backbone.encode_image(pixels.to(device))).clamp(0, 1).cpu()

    return repaint


def _show(about: About, found: Findings, output: Path) -> None:
    console = Console()
    for table in tables(about, found):
        for part in drawn(table, console.width):
            console.print(part)
    for warning in found.warnings:
        console.print(f"mind: {warning}", markup=False, highlight=False)
    console.print(
        f"{about.seconds:.0f} s; all numbers: {output / FILE}, as a page: {output / REPORT}",
        markup=False,
        highlight=False,
    )
