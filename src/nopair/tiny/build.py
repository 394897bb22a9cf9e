"""`nopair tiny build`: trains the tiny checkpoints from nothing and writes them as ordinary Hugging Face folders.

Parts are built in the order of `PARTS`; a part needs those before it, but for the further judges. Every part is one
run of the shared training loop, so an interrupted build goes on from its newest checkpoint. The name of a run's folder
ends in a digest of its settings and of the models it starts from: a build meets no run but its own.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, final

import torch
from diffusers import AutoencoderKL
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerFast

from nopair.backbones.folder import load_model, saving
from nopair.backbones.zimage import ZImageBackbone
from nopair.config import CheckpointConfig, LoggingConfig, Recipe, Run, load_recipe
from nopair.data.files import folder_atomic
from nopair.device import choose_device
from nopair.digests import folder_digest
from nopair.editor import Editor
from nopair.errors import ConfigError, ModelError
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.settings import path_override
from nopair.tiny.base import SHIFT, BasePhase, BaseSettings
from nopair.tiny.cards import base_card, editor_card, judge_card, write_card
from nopair.tiny.judge import CONTINUED, WIDTH, WIDTHS, JudgePhase, JudgeSettings, new_processor
from nopair.tiny.vae import DecoderPhase, VaePhase, VaeSettings
from nopair.tiny.words import IMAGE, VIDEO, train_tokenizer
from nopair.training import checkpoint
from nopair.training.loop import AGAIN, run_phases
from nopair.training.metrics import say
from nopair.training.phase import Phase
from nopair.training.run import EDITOR, train
from nopair.weights import packaged, resolve

PARTS: Final = ("vae", "base", "judge", "judge-2", "judge-64", "judge-32", "editor")
"""`judge-2` is the judge, trained on. The smaller ones are for asking what a judge's size is worth."""
RUNS: Final = Path("runs/tiny")
"""Where the runs for the package's own folder keep their checkpoints: what is in there is shipped."""
_VAE: Final = "vae"
"""Folder of the autoencoder within its run's: it is shipped within the base, and has no folder of its own."""


@final
class PartRun(Run):
    """The run of one part. `settings` are its training settings, so that a build only goes on with what it began."""

    settings: Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for: where models go, and how many steps a part takes, if not its own number."""

    output: Path
    steps: int | None
    console: Console

    def run_folder(self, name: str, told: Mapping[str, object]) -> Path:
        """Of the run of part `name` that is as `told`, and of no other."""
        runs = RUNS if self.output.resolve() == packaged().resolve() else self.output / "runs"
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        return runs / f"{name}-{digest}"


def build(part: str, output: Path, steps: int | None = None, start: str | None = None) -> None:
    """Build one part, or `all`, into `output`/<part>; what was there is replaced when the new one is complete.

    Runs keep their checkpoints in `output`/runs, those for the package's own folder in `RUNS`.

    `start`: a judge's folder, or tiny:judge, which is then trained on instead of a new one; for `judge` alone. What
    comes of a smaller judge goes into the folder of its width.

    Raises:
        ConfigError: `start` is given for another part.
        ModelError: a part that this one needs is not there, or `start` is no such folder.
        Interrupted: after a signal, with the run saved; the same command goes on from there.
    """
    order = _Order(output, steps, Console())
    if start is not None:
        if part != "judge":
            raise ConfigError(f"--start is for the judge, not for {part}; run: nopair tiny build judge --start {start}")
        _continue_judge(order, start)
        return
    for name in PARTS if part == "all" else (part,):
        order.console.rule(f"tiny {name}")
        _BUILDERS[name](order)


def _build_vae(order: _Order) -> None:
    run = _vae_run(order, order.steps)
    settings = _vae_settings(order.steps)
    phase = VaePhase(settings)
    _go(order, run, (phase, DecoderPhase(phase.vae, settings)))
    built = Path(run.output) / _VAE
    with folder_atomic(built, marker="config.json") as part, saving(built):
        phase.vae.eval().half().save_pretrained(part)


def _build_base(order: _Order) -> None:
    settings = BaseSettings() if order.steps is None else BaseSettings(steps=order.steps)
    vae, known = _vae(order)
    tokenizer = train_tokenizer(0)
    phase = BasePhase(vae, tokenizer, settings)
    _go(order, _part_run(order, "base", settings, known), (phase,))
    transformer, text_encoder = phase.finish()
    backbone = ZImageBackbone(vae.half(), text_encoder.model.half(), tokenizer, transformer.half(), SHIFT)
    with folder_atomic(order.output / "base", marker="model_index.json") as part:
        backbone.save(part)
        write_card(part, base_card(ZImageBackbone.load(part), settings))


def _build_judge(order: _Order, width: int = WIDTH) -> None:
    settings = JudgeSettings() if order.steps is None else JudgeSettings(steps=order.steps)
    tokenizer = train_tokenizer(0, (IMAGE, VIDEO))
    vae, known = _vae(order)
    phase = JudgePhase(vae, tokenizer, settings, width=width)
    part = f"judge{_suffix(width)}"
    _go(order, _part_run(order, part, settings, known), (phase,))
    _save_judge(phase, part, order.output, f"Trained by `nopair tiny build {part}`")


def _build_second_judge(order: _Order) -> None:
    own = order.output / "judge"
    start = str(own) if own.is_dir() and order.output != packaged() else "tiny:judge"
    _continue_judge(order, start, "judge-2")


def _continue_judge(order: _Order, start: str, part: str | None = None) -> None:
    """`part` is what the result is called; by default as a new judge of its width."""
    judge = LlavaOnevisionJudge.load(resolve(start))
    tokenizer, embedding = judge.tokenizer, judge.model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    width = embedding.embedding_dim
    if width not in WIDTHS or not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{start}: is no tiny judge; --start takes a folder that nopair tiny build judge has written")
    settings = CONTINUED if order.steps is None else replace(CONTINUED, steps=order.steps)
    vae, known = _vae(order)
    base = _base_folder(order.output)
    painter = ZImageBackbone.load(base).to(choose_device("auto"))
    phase = JudgePhase(vae, tokenizer, settings, judge.model, width, painter)
    known |= {"start": start, "start_digest": folder_digest(resolve(start)), "base": folder_digest(base)}
    _go(order, _part_run(order, part or f"judge{_suffix(width)}-continued", settings, known), (phase,))
    command = f"nopair tiny build judge --start {start}" if part is None else f"nopair tiny build {part}"
    _save_judge(phase, part or f"judge{_suffix(width)}", order.output, f"`{start}`, trained on by `{command}`")


def _save_judge(phase: JudgePhase, name: str, output: Path, made: str) -> None:
    base = _base_folder(output)
    with folder_atomic(output / name, marker="config.json") as part, saving(output / name):
        phase.finish().half().save_pretrained(part)
        phase.judge.tokenizer.save_pretrained(part)
        new_processor().save_pretrained(part)
        write_card(part, judge_card(part, base, phase.settings, made))


def _base_folder(output: Path) -> Path:
    return output / "base" if (output / "base").is_dir() else packaged() / "base"


def _suffix(width: int) -> str:
    """What the names of a judge's folders end in."""
    return "" if width == WIDTH else f"-{width}"


def _build_editor(order: _Order) -> None:
    recipe = _editor_recipe(order)
    folder = Path(recipe.output)
    phases = (recipe.warmup, recipe.sft, recipe.grpo, recipe.npedit)
    train(recipe, resume=_begun(order, folder, sum(phase.steps for phase in phases)), device="auto", stopped=AGAIN)
    editor = Editor.load(folder / EDITOR, dtype=torch.float16)
    editor.save(order.output / "editor")
    write_card(order.output / "editor", editor_card(order.output / "editor", order.output / "judge", recipe))


def _editor_recipe(order: _Order) -> Recipe:
    steps, base, judge = order.steps, order.output / "base", order.output / "judge"
    shorter = [] if steps is None else [f"warmup.steps={steps}", f"npedit.steps={steps}"]
    recipe = load_recipe("tiny", [path_override("base.path", base), path_override("judge.path", judge), *shorter])
    told = recipe.model_dump(mode="json") | {"digests": [folder_digest(base), folder_digest(judge)]}
    return recipe.model_copy(update={"output": str(order.run_folder("editor", told))})


_BUILDERS: Final[dict[str, Callable[[_Order], None]]] = {
    "vae": _build_vae,
    "base": _build_base,
    "judge": _build_judge,
    "judge-2": _build_second_judge,
    "judge-64": partial(_build_judge, width=64),
    "judge-32": partial(_build_judge, width=32),
    "editor": _build_editor,
}


def _part_run(
    order: _Order, name: str, settings: VaeSettings | BaseSettings | JudgeSettings, known: Mapping[str, str]
) -> PartRun:
    """`known`: what else the part comes of, by name."""
    told = asdict(settings) | dict(known)
    return PartRun(
        name=f"tiny-{name}",
        seed=settings.seed,
        settings=told,
        output=str(order.run_folder(name, told)),
        logging=LoggingConfig(every=50, samples_every=0),
        checkpoint=CheckpointConfig(every=200, keep=2),
    )


def _go(order: _Order, run: PartRun, phases: Sequence[Phase]) -> None:
    """Begin the run, or go on with it."""
    directory = Path(run.output)
    resume = "latest" if _begun(order, directory, sum(phase.steps for phase in phases)) else None
    run_phases(phases, recipe=run, directory=directory, resume=resume, console=order.console, stopped=AGAIN)


def _begun(order: _Order, directory: Path, steps: int) -> bool:
    """Whether there is something to go on with; says where the run is."""
    done = checkpoint.newest_total(directory / "checkpoints")
    complete = ", complete; remove the folder to train again" if done >= steps else ""
    say(order.console, f"the run is in {directory}{complete}")
    return done > 0


def _vae_settings(steps: int | None) -> VaeSettings:
    return VaeSettings() if steps is None else VaeSettings(steps=steps, decoder_steps=steps)


def _vae_run(order: _Order, steps: int | None) -> PartRun:
    return _part_run(order, "vae", _vae_settings(steps), {})


def _vae(order: _Order) -> tuple[AutoencoderKL, dict[str, str]]:
    """The autoencoder built with as many steps, or else in full, or else the one within the base; and its digest."""
    built = [Path(_vae_run(order, steps).output) / _VAE for steps in (order.steps, None)]
    for folder in (*built, order.output / "base" / "vae", packaged() / "base" / "vae"):
        if (folder / "config.json").is_file():
            say(order.console, f"the autoencoder is {folder}")
            return load_model(AutoencoderKL, folder, torch.float32), {"autoencoder": folder_digest(folder)}
    raise ModelError(f"{built[0]}: there is no autoencoder yet; build it with: nopair tiny build vae")
