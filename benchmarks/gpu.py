"""A recipe's training step and its edit at full architecture size, with random weights, on a GPU.

Prints the time of a step, peak memory beside what `nopair plan` says, operations a second as a share of the card's
peak, and the share of time of each part. Nothing is downloaded: weights are drawn, texts and photos are stand-ins of
typical size. With `--device cpu --size tiny` the same code runs on the tiny models, to try it where there is no GPU.

Shares are of one more step, in which every part waits for the device before and after it; step times are of steps that
do not wait. The fake score's backward part holds what follows it until its optimiser steps.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timed import REST, Clock, TimedJudge, TimedRoles, told
from torch import nn

from nopair.backbones.roles import FullRoles, LoraRoles
from nopair.config import Recipe, load_recipe, parse_recipe
from nopair.data.loader import Source
from nopair.device import choose_device, enough_memory
from nopair.errors import MemoryShortError, NopairError
from nopair.method.flow import levels
from nopair.planning.architecture import architecture
from nopair.planning.bases import random_backbone, shape_backbone, text_encoders
from nopair.planning.cards import CARDS, Card
from nopair.planning.judges import random_judge
from nopair.planning.plan import GIB, Plan, plan
from nopair.planning.records import shape_source, sizes_of
from nopair.precision import Bits, require_bitsandbytes
from nopair.settings import dump
from nopair.training.parts import Parts
from nopair.training.phases import EditPhase
from nopair.training.sampling import Sampler
from nopair.types import EditBatch

SIZES = {
    "full": ("zimage-24gb", []),
    "tiny": ("demo", ["npedit.batch=2", "npedit.fake_steps=1", "npedit.optimiser=adamw", "warmup.steps=0"]),
}
"""Recipe and overrides of each size."""
ANY_NORM = "guard.max_grad_norm_spike=1e30"
"""Random weights have large gradients, and a step that is refused makes no moments, whose memory is to be measured."""
RECOMPUTES_NOTHING = ["base.checkpointing=false", "judge.checkpointing=false"]


@dataclass(frozen=True)
class GreyPhotos:
    """Records as `nopair plan` takes them, with grey photos; the same ones in every batch."""

    shapes: Source
    device: torch.device

    def batch(self, indices: Sequence[int]) -> EditBatch:
        batch = self.shapes.batch(range(len(indices)))
        return dataclasses.replace(batch, reference=torch.full(batch.reference.shape, 0.5, device=self.device))


# Putting them together ------------------------------------------------------------------------------------------------


def quantise(module: nn.Module, bits: Bits, is_quantised: Any) -> None:
    """Replace linear layers by bitsandbytes' own, as the libraries do when they read weights."""
    require_bitsandbytes()
    import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]

    for name, layer in list(module.named_modules()):
        if not (isinstance(layer, nn.Linear) and is_quantised(name)):
            continue
        sizes, weight, device = (layer.in_features, layer.out_features), layer.weight.detach(), layer.weight.device
        if bits == 4:
            made = bnb.nn.Linear4bit(*sizes, layer.bias is not None, compute_dtype=weight.dtype, quant_type="nf4")
            made.weight = bnb.nn.Params4bit(
                weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
            )
        else:
            made = bnb.nn.Linear8bitLt(*sizes, layer.bias is not None, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        made.bias = layer.bias
        module.set_submodule(name, made.requires_grad_(False).to(device))


@contextmanager
def drawn_as(dtype: torch.dtype) -> Iterator[None]:
    """Inside, weights are made in this precision, not made in float32 and then rounded: half the memory."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


def put_together(recipe: Recipe, clock: Clock) -> tuple[EditPhase, Sampler]:
    """The phase and the sampler of a recipe around random models. Its ensemble and bystander are left out."""
    device, base = clock.device, recipe.base
    dtype, size, cached = getattr(torch, base.dtype), sizes_of(recipe)[0], recipe.data.cache is not None
    with drawn_as(dtype):
        backbone = random_backbone(architecture(base.path), dtype, base.bits, device, quantise)
    if base.checkpointing:
        backbone.checkpoint()
    source, shown = (GreyPhotos(shape_source(recipe, held_out=held_out), device) for held_out in (False, True))
    lora = base.lora
    roles = (
        FullRoles.of(backbone)
        if base.roles == "full"
        else LoraRoles.of(backbone, lora.rank, lora.alpha, lora.targets, recipe.seed, lora.ranks)
    )
    timed = TimedRoles(roles, clock, {} if cached else None)
    examples = shown.batch(range(1))
    if cached:
        piece, negative = (
            source.batch(range(recipe.npedit.batch // recipe.npedit.accumulate)),
            recipe.npedit.negative_prompt,
        )
        negatives = piece.captions if negative is None else (negative,) * len(piece)
        with torch.no_grad():
            for prompts in (piece.instructions, piece.edited_captions, negatives, examples.instructions):
                timed.student.encode_text(prompts)
        backbone.drop_text_encoder()
    with drawn_as(getattr(torch, recipe.judge.dtype)):
        judge = random_judge(architecture(recipe.judge.path), recipe.judge, device, quantise)
    shift = recipe.sampling.shift or backbone.shift_for(*size, recipe.sampling.steps)
    schedule = levels(recipe.sampling.steps, shift)
    sampler = Sampler(timed.student, examples, schedule, recipe.seed)
    parts = Parts(recipe, timed, TimedJudge(judge, clock), None, source, shift, schedule, sampler)
    return EditPhase(parts), sampler


def drawn_bytes(recipe: Recipe) -> int:
    """Of all of the base in its own precision: so much is drawn before any of it is quantised or dropped."""
    base: Any = shape_backbone(architecture(recipe.base.path), getattr(torch, recipe.base.dtype), None)
    parts = (base.transformer, base.vae, *text_encoders(base))
    return sum(one.nbytes for part in parts for one in (*part.parameters(), *part.buffers()))


def require_room(planned: Plan, drawn: int, available: int, name: str) -> None:
    """Raises MemoryShortError where a device of so many bytes is smaller than planned, or than what is drawn first."""
    most = max(planned.peak_bytes, drawn)
    if most > available:
        first = "" if most == planned.peak_bytes else " for a base that is drawn before it is quantised"
        raise MemoryShortError(
            f"{planned.recipe} needs {most / GIB:.1f} GiB{first}, {name} has {available / GIB:.1f}; "
            "choose another recipe with --recipe"
        )


def card_of(name: str) -> Card | None:
    """The card that a device of this name is, if it is known."""
    plain = name.lower().replace(" ", "")
    return next((card for key, card in CARDS.items() if key in plain), None)


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Seconds of the steps and of an edit, peak bytes of the steps (None on a CPU), and seconds by part of one step."""

    steps: Sequence[float]
    edit: float
    peak: int | None
    shares: Mapping[str, float]
    skipped: float


def measure(recipe: Recipe, device: torch.device, steps: int) -> Measured:
    """One step to get warm, `steps` that are timed, one by part, and two edits, of which the second is timed."""
    clock = Clock(device)
    phase, sampler = put_together(recipe, clock)
    phase.begin()
    with told(clock):
        phase.step(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        times, metrics = [], dict[str, float]()
        for index in range(1, 1 + steps):
            began = clock.now()
            metrics = phase.step(index)
            times.append(clock.now() - began)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        clock.start()
        phase.step(1 + steps)
        clock.turn(REST)
        clock.running = False
    sampler.pixels()
    began = clock.now()
    sampler.pixels()
    refused = metrics["skipped"] + metrics["fake_skipped"]
    return Measured(times, clock.now() - began, peak, dict(clock.seconds), refused)


def show(recipe: Recipe, planned: Plan, needed: int, found: Measured, name: str, card: Card | None) -> None:
    """Print what was measured; `needed` are a step's operations if nothing is recomputed."""
    median = statistics.median(found.steps)
    stages = [stage.peak_bytes for stage in planned.stages if stage.name.startswith("npedit")]
    measured = "not measured on a CPU" if found.peak is None else f"{found.peak / GIB:.2f} GiB"
    print(f"{recipe.name} on {name}, torch {torch.__version__}, random weights")
    print(
        f"step         {median:.3f} s, median of {len(found.steps)} ({min(found.steps):.3f} to {max(found.steps):.3f})"
    )
    print(f"edit         {found.edit:.3f} s, {recipe.sampling.steps} steps, one image")
    print(f"peak memory  {measured}; planned {max(stages) / GIB:.2f} GiB")
    for label, count in (("MFU", needed), ("with recomputation", planned.step_flops["npedit"])):
        rate = count / median / 1e12
        share = "the card's peak is not known" if card is None else f"{rate / card.tflops:.1%} of {card.tflops:.0f}"
        print(f"{label:12} {count / 1e12:.3g} TFLOP a step, {rate:.3g} TFLOP/s: {share}")
    if found.skipped:
        print(f"mind: {found.skipped:.0f} steps had gradients that are not finite, and moved nothing")
    total = sum(found.shares.values())
    print(f"shares of a step of {total:.3f} s in which every part waits:")
    for part, seconds in sorted(found.shares.items(), key=lambda one: -one[1]):
        print(f"  {part:22} {seconds / total:6.1%}  {seconds:.3f} s")


def run(options: argparse.Namespace) -> None:
    """Plan, check, measure, print. Raises NopairError."""
    named, overrides = SIZES[options.size]
    recipe = load_recipe(options.recipe or named, [*overrides, ANY_NORM, *options.overrides])
    device = choose_device(options.device)
    kind = "cuda" if device.type == "cuda" else "cpu"
    planned = plan(recipe, device=kind, switches=False)
    name = "a CPU"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        require_room(planned, drawn_bytes(recipe), torch.cuda.get_device_properties(device).total_memory, name)
    plain = plan(parse_recipe(dump(recipe), RECOMPUTES_NOTHING), device=kind, switches=False)
    with enough_memory("choose another recipe with --recipe"):
        found = measure(recipe, device, options.steps)
    card = CARDS[options.card] if options.card else card_of(name)
    show(recipe, planned, plain.step_flops["npedit"], found, name, card)


def main(arguments: Sequence[str] | None = None) -> None:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--recipe", help="instead of the size's own")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--card", choices=CARDS, help="whose peak counts, if its name does not tell")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except NopairError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
