"""Editors in and out: from the method's authors' checkpoint, and to folders that stock diffusers samples as we do."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from nopair.backbones import authors
from nopair.backbones.folder import load_scheduler
from nopair.backbones.zimage import ZImageBackbone
from nopair.data.files import folder_atomic
from nopair.editor import SETTINGS_FILE, Editor, Settings
from nopair.errors import ModelError
from nopair.precision import DTYPES
from nopair.weights import resolve

Precision = Literal["bf16", "fp16", "fp32"]


def import_editor(checkpoint: Path, base: Path, output: Path, precision: Precision) -> None:
    """Write an editor of the authors' published student (see `nopair.backbones.authors`), all in one precision.

    `base` is a folder of the Z-Image it was trained from; autoencoder, text encoder and tokenizer are taken from there.

    Raises:
        ModelError: the checkpoint or the base cannot be used.
        OutputError: `output` cannot be written.
    """
    dtype = DTYPES[precision]
    transformer = authors.read_student(checkpoint, base)
    nn.ModuleList([transformer]).to(dtype)
    backbone = ZImageBackbone.load_around(transformer, base, dtype)
    settings = Settings(
        steps=authors.STEPS,
        shift=authors.SHIFT,
        height=authors.SIZE,
        width=authors.SIZE,
        questions=authors.QUESTIONS,
    )
    Editor(dataclasses.replace(backbone, dialect=authors.DIALECT), settings).save(output)


def export_editor(model: str | Path, output: Path, precision: Precision) -> None:
    """Copy an editor in a precision, with a scheduler that makes stock diffusers sample as nopair does: docs/export.md.

    The copy is still an editor of nopair's.

    Raises:
        ModelError: it cannot be read, or the schedule it was trained on is not one that its family's pipelines can do.
        OutputError: `output` cannot be written.
    """
    editor = Editor.load(model, dtype=DTYPES[precision])
    scheduler = _renoising(load_scheduler(resolve(str(model)) / "scheduler"), editor, model)
    with folder_atomic(output, marker=SETTINGS_FILE) as part:
        editor.write(part)
        scheduler.save_pretrained(part / "scheduler")


def _renoising(
    scheduler: FlowMatchEulerDiscreteScheduler, editor: Editor, model: str | Path
) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler, changed to predict x0 and add fresh noise, at uniform levels shifted as the editor was trained.

    Raises:
        ModelError: it shifts levels by its family's rule, which gives another shift.
    """
    settings = editor.settings
    changes: dict[str, Any] = {"stochastic_sampling": True, "shift_terminal": None}
    if not scheduler.config["use_dynamic_shifting"]:
        changes["shift"] = settings.shift
    else:
        own = editor.backbone.shift_for(settings.height, settings.width, settings.steps)
        if not math.isclose(settings.shift, own, rel_tol=1e-3):
            raise ModelError(
                f"{model}: was trained with levels shifted by {settings.shift:.4g}; stock pipelines of this family "
                f"shift them by {own:.4g} at this size, so leave sampling.shift unset in training to export"
            )
    changed: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, **changes)
    return changed
