"""A small phase with everything that must survive an interruption, and a run of it as a program.

    python toy.py DIRECTORY RESUME [HANG]

RESUME is `new`, `latest` or a checkpoint. Prints a line after every step. HANG is `<function of os>:<n>`: stop for good
in the n-th call of it, as a machine does when it is switched off.
"""

import os
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import nn

from nopair.config import Recipe, parse_recipe
from nopair.errors import Interrupted
from nopair.training.loop import run_phases
from nopair.training.optim import Ema, GuardedStep, accumulate, learning_rate
from nopair.training.phase import State, generator

RECIPE = """
name: toy
seed: 3
output: unused
base: {path: tiny:base}
judge: {path: tiny:judge}
data: {source: world}
warmup: {steps: 5, batch: 8, accumulate: 2, lr: 1e-2, ema: 0.8, lr_warmup_steps: 2}
npedit: {steps: 7, batch: 8, lr: 1e-2, fake_lr: 1e-2, ema: 0.8, lr_final_fraction: 0.1}
logging: {every: 2, samples_every: 3}
checkpoint: {every: 3, keep: 2}
guard: {max_grad_norm_spike: 1e3, max_skipped: 1}
"""


def toy_recipe(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


class ToyPhase:
    """Fit a two-layer network with dropout to noisy targets; AdamW, EMA, accumulation, all through the helpers."""

    def __init__(self, name: str, model: nn.Module, recipe: Recipe) -> None:
        self.name = name
        self.recipe = recipe
        self.settings = recipe.warmup if name == "warmup" else recipe.npedit
        self.model = model
        self.seen: list[int] = []

    @property
    def steps(self) -> int:
        return self.settings.steps

    def end(self) -> None:
        for name in ("guarded", "ema"):
            vars(self).pop(name, None)

    def begin(self) -> None:
        parameters = dict(self.model.named_parameters())
        optimiser = torch.optim.AdamW(parameters.values(), betas=self.settings.betas, weight_decay=0.1)
        guard = self.recipe.guard
        self.guarded = GuardedStep(
            optimiser,
            label=self.name,
            clip=self.settings.clip,
            spike=guard.max_grad_norm_spike,
            max_skipped=guard.max_skipped,
        )
        self.ema = Ema(parameters, self.settings.ema)

    def step(self, index: int) -> dict[str, float]:
        rng = generator(self.recipe.seed, self.name, index)
        inputs = torch.randn(self.settings.batch, 4, generator=rng)
        pieces = self.settings.accumulate
        loss = accumulate(((self.model(part) - part.flip(1)).square().mean() for part in inputs.chunk(pieces)), pieces)
        rate = learning_rate(
            index,
            peak=self.settings.lr,
            warmup_steps=self.settings.lr_warmup_steps,
            total_steps=self.steps,
            final_fraction=self.settings.lr_final_fraction,
        )
        outcome = self.guarded.step(loss, lr=rate, index=index)
        if not outcome.skipped:
            self.ema.update()
        self.seen.append(index)
        return {"loss": loss, "grad_norm": outcome.grad_norm, "lr": outcome.lr}

    def state(self) -> State:
        return {"model": self.model.state_dict(), "guarded": self.guarded.state(), "ema": self.ema.state()}

    def load_state(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.begin()
        self.guarded.load_state(state["guarded"])
        self.ema.load_state(state["ema"])

    def samples(self, index: int) -> Image.Image | None:
        return Image.new("RGB", (4, 4), (index, 0, 0))

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained and the averaged weights, copied."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        return own | {f"ema.{name}": value.clone() for name, value in self.ema.weights().items()}


def toy_phases(recipe: Recipe) -> tuple[ToyPhase, ToyPhase]:
    """Two phases that train the same model one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 4))
    return ToyPhase("warmup", model, recipe), ToyPhase("npedit", model, recipe)


def _hang_in(function: str, call: int) -> None:
    original = getattr(os, function)
    calls = 0

    def wrapper(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            print("hanging", flush=True)
            time.sleep(600)
        return original(*args, **kwargs)

    setattr(os, function, wrapper)


def main() -> int:
    directory, resume, *hang = sys.argv[1:]
    torch.set_num_threads(1)
    recipe = toy_recipe()
    phases = toy_phases(recipe)
    for phase in phases:
        step = phase.step

        def slow(index: int, step: object = step, name: str = phase.name) -> dict[str, float]:
            values = step(index)
            print(name, index, flush=True)
            time.sleep(0.05)
            return values

        phase.step = slow
    if hang:
        function, call = hang[0].split(":")
        _hang_in(function, int(call))
    try:
        run_phases(
            phases,
            recipe=recipe,
            directory=Path(directory),
            resume=None if resume == "new" else resume,
            console=Console(stderr=True),
        )
    except Interrupted as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
