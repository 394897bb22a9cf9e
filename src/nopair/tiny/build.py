"""`nopair tiny build`: trains the tiny checkpoints from nothing and writes them as ordinary Hugging Face folders.

Parts are built in the order of `PARTS`; a part needs those before it, but for the further judges. Every part is one
run of the shared training loop in `runs/tiny/<part>`, so an interrupted build goes on from its newest checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
from nopair.config import CheckpointConfig, LoggingConfig, Run, load_recipe
from nopair.data.files import folder_atomic
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
from nopair.training.phase import Phase
from nopair.training.run import EDITOR, train
from nopair.weights import packaged, resolve

PARTS: Final = ("vae", "base", "judge", "judge-2", "judge-64", "judge-32", "editor")
"""`judge-2` is the judge, trained on. The smaller ones are for asking what a judge's size is worth."""
RUNS: Final = Path("runs/tiny")
"""Where the runs keep their checkpoints, so that a build can be interrupted."""
_VAE: Final = RUNS / "vae" / "vae"
"""The autoencoder is shipped within the base, and has no folder of its own."""


@final
class PartRun(Run):
    """The run of one part. `settings` are its training settings, so that a build only goes on with what it began."""

    settings: Mapping[str, int | float | str]


def build(part: str, output: Path, steps: int | None = None, start: str | None = None) -> None:
    """Build one part, or `all`, into `output`/<part>; what was there is replaced when the new one is complete.

    `start`: a judge's folder, or tiny:judge, which is then trained on instead of a new one; for `judge` alone. What
    comes of a smaller judge goes into the folder of its width.

    Raises:
        ConfigError: `start` is given for another part.
        ModelError: a part that this one needs is not there, or `start` is no such folder.
        Interrupted: after a signal, with the run saved; the same command goes on from there.
    """
    console = Console()
    if start is not None:
        if part != "judge":
            raise ConfigError(f"--start is for the judge, not for {part}; run: nopair tiny build judge --start {start}")
        _continue_judge(output, steps, console, start)
        return
    for name in PARTS if part == "all" else (part,):
        console.rule(f"tiny {name}")
        _BUILDERS[name](output, steps, console)


def _build_vae(output: Path, steps: int | None, console: Console) -> None:
    settings = VaeSettings() if steps is None else VaeSettings(steps=steps, decoder_steps=steps)
    phase = VaePhase(settings)
    _run((phase, DecoderPhase(phase.vae, settings)), settings, console)
    with folder_atomic(_VAE, marker="config.json") as part, saving(_VAE):
        phase.vae.eval().half().save_pretrained(part)


def _build_base(output: Path, steps: int | None, console: Console) -> None:
    settings = BaseSettings() if steps is None else BaseSettings(steps=steps)
    vae = _vae(output)
    tokenizer = train_tokenizer(0)
    phase = BasePhase(vae, tokenizer, settings)
    _run((phase,), settings, console)
    transformer, text_encoder = phase.finish()
    backbone = ZImageBackbone(vae.half(), text_encoder.model.half(), tokenizer, transformer.half(), SHIFT)
    with folder_atomic(output / "base", marker="model_index.json") as part:
        backbone.save(part)
        write_card(part, base_card(ZImageBackbone.load(part), settings))


def _build_judge(output: Path, steps: int | None, console: Console, width: int = WIDTH) -> None:
    settings = JudgeSettings() if steps is None else JudgeSettings(steps=steps)
    tokenizer = train_tokenizer(0, (IMAGE, VIDEO))
    phase = JudgePhase(_vae(output), tokenizer, settings, width=width)
    _run((phase,), settings, console, _suffix(width))
    part = f"judge{_suffix(width)}"
    _save_judge(phase, part, output, f"Trained by `nopair tiny build {part}`")


def _build_second_judge(output: Path, steps: int | None, console: Console) -> None:
    start = str(output / "judge") if (output / "judge").is_dir() and output != packaged() else "tiny:judge"
    _continue_judge(output, steps, console, start, "judge-2")


def _continue_judge(output: Path, steps: int | None, console: Console, start: str, part: str | None = None) -> None:
    """`part` is what the result is called; by default as a new judge of its width."""
    judge = LlavaOnevisionJudge.load(resolve(start))
    tokenizer, embedding = judge.tokenizer, judge.model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    width = embedding.embedding_dim
    if width not in WIDTHS or not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{start}: is no tiny judge; --start takes a folder that nopair tiny build judge has written")
    settings = CONTINUED if steps is None else replace(CONTINUED, steps=steps)
    phase = JudgePhase(_vae(output), tokenizer, settings, judge.model, width)
    run = f"{_suffix(width)}-continued" if part is None else part.removeprefix("judge")
    _run((phase,), settings, console, run, start)
    command = f"nopair tiny build judge --start {start}" if part is None else f"nopair tiny build {part}"
    _save_judge(phase, part or f"judge{_suffix(width)}", output, f"`{start}`, trained on by `{command}`")


def _save_judge(phase: JudgePhase, name: str, output: Path, made: str) -> None:
    base = output / "base" if (output / "base").is_dir() else packaged() / "base"
    with folder_atomic(output / name, marker="config.json") as part, saving(output / name):
        phase.finish().half().save_pretrained(part)
        phase.judge.tokenizer.save_pretrained(part)
        new_processor().save_pretrained(part)
        write_card(part, judge_card(part, base, phase.settings, made))


def _suffix(width: int) -> str:
    """What the names of a judge's folders end in."""
    return "" if width == WIDTH else f"-{width}"


def _build_editor(output: Path, steps: int | None, console: Console) -> None:
    shorter = [] if steps is None else [f"warmup.steps={steps}", f"npedit.steps={steps}"]
    places = {"base.path": output / "base", "judge.path": output / "judge", "output": RUNS / "editor"}
    recipe = load_recipe("tiny", [*(path_override(key, place) for key, place in places.items()), *shorter])
    train(recipe, resume=_started(RUNS / "editor"), device="auto", stopped=AGAIN)
    editor = Editor.load(RUNS / "editor" / EDITOR, dtype=torch.float16)
    editor.save(output / "editor")
    write_card(output / "editor", editor_card(output / "editor", output / "judge", recipe))


_BUILDERS: Final[dict[str, Callable[[Path, int | None, Console], None]]] = {
    "vae": _build_vae,
    "base": _build_base,
    "judge": _build_judge,
    "judge-2": _build_second_judge,
    "judge-64": partial(_build_judge, width=64),
    "judge-32": partial(_build_judge, width=32),
    "editor": _build_editor,
}


def _run(
    phases: Sequence[Phase],
    settings: VaeSettings | BaseSettings | JudgeSettings,
    console: Console,
    suffix: str = "",
    start: str | None = None,
) -> None:
    """`suffix` sets the run's folder apart from that of the part's usual run."""
    name = f"{phases[0].name}{suffix}"
    run = PartRun(
        name=f"tiny-{name}",
        seed=settings.seed,
        settings=asdict(settings) | ({} if start is None else {"start": start}),
        output=str(RUNS / name),
        logging=LoggingConfig(every=50, samples_every=0),
        checkpoint=CheckpointConfig(every=200, keep=2),
    )
    directory = Path(run.output)
    resume = "latest" if _started(directory) else None
    run_phases(phases, recipe=run, directory=directory, resume=resume, console=console, stopped=AGAIN)


def _started(directory: Path) -> bool:
    return checkpoint.newest_total(directory / "checkpoints") > 0


def _vae(output: Path) -> AutoencoderKL:
    """The autoencoder just built or, if there is none, the one within the base."""
    for folder in (_VAE, output / "base" / "vae", packaged() / "base" / "vae"):
        if (folder / "config.json").is_file():
            return load_model(AutoencoderKL, folder, torch.float32)
    raise ModelError(f"{_VAE}: there is no autoencoder yet; build it with: nopair tiny build vae")
