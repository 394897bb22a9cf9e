"""How often the oracle errs, measured where the right answer is known."""

import random
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.world.corruptions import gaussian_noise, over_edit, wrong_edit
from nopair.world.edits import CATEGORIES, Edit, random_edit, random_scene
from nopair.world.oracle import score_batch, summarise
from nopair.world.parse import canonical, parse
from nopair.world.render import render_batch
from nopair.world.scenes import CELLS, Scene

Pixels = Float[Tensor, "batch 3 height width"]

NOISE: Final = 0.03
"""Standard deviation of the noise in "slightly noisy"."""
_THING: Final = ("shape", "colour", "texture", "size", "dx", "dy")
_GROUND: Final = ("pattern", "colour", "phase_x", "phase_y")


def parse_errors(truth: Sequence[Scene], parsed: Sequence[Scene]) -> dict[str, float]:
    """Share of wrong answers: per scene ("scene"), per cell ("presence"), and per attribute.

    An attribute of a thing counts where both scenes have a thing in the cell; "background_..." counts per scene.
    """
    truth = [canonical(scene) for scene in truth]
    pairs = list(zip(truth, parsed, strict=True))
    cells = [(a.at(cell), b.at(cell)) for a, b in pairs for cell in range(len(CELLS))]
    both = [(a, b) for a, b in cells if a and b]
    errors = {"scene": _share([a != b for a, b in pairs]), "presence": _share([bool(a) != bool(b) for a, b in cells])}
    for name in _THING:
        errors[name] = _share([getattr(a, name) != getattr(b, name) for a, b in both])
    for name in _GROUND:
        errors[f"background_{name}"] = _share(
            [getattr(a.background, name) != getattr(b.background, name) for a, b in pairs]
        )
    return errors


def error_rates(
    reconstruct: Callable[[Pixels], Pixels] | None, seed: int, count: int, categories: Sequence[str] = CATEGORIES
) -> dict[str, dict[str, float]]:
    """The oracle's error rates on `count` random edits, categories taking turns, from both splits.

    One row for "rendered" images, one for "noisy" ones (white noise of 0.03), and, given a `reconstruct` that takes
    and returns pixels (an autoencoder there and back), one for "reconstructed" ones. In each row:

        scene, presence, shape, …  `parse_errors` on the right answers
        missed                     right answers that are refused success
        accepted_unchanged         unchanged images that are granted success (but for `nothing`)
        accepted_wrong             wrong edits that are granted success
        preservation, realism      mean scores of the right answers (1 is perfect)
        preservation_over_edit     mean preservation where something else was changed as well, or, of `free-form`, the
                                   subject is another one (0 is perfect)
    """
    rng = random.Random(f"proof {seed}")
    edits = [random_edit(rng, categories[k % len(categories)], random_scene(rng)) for k in range(count)]
    wrong = [wrong_edit(rng, edit) for edit in edits]
    over = [over_edit(rng, edit) for edit in edits]

    def noisy(images: Pixels) -> Pixels:
        return gaussian_noise(images, NOISE, torch.Generator().manual_seed(seed))

    ways: dict[str, Callable[[Pixels], Pixels]] = {"rendered": lambda images: images, "noisy": noisy}
    if reconstruct is not None:
        ways["reconstructed"] = reconstruct
    return {name: _row(way, edits, wrong, over) for name, way in ways.items()}


def _row(
    way: Callable[[Pixels], Pixels], edits: Sequence[Edit], wrong: Sequence[Scene], over: Sequence[Scene]
) -> dict[str, float]:
    targets = [edit.target for edit in edits]
    right = way(render_batch(targets))
    unchanged = way(render_batch([edit.source for edit in edits]))
    changing = [edit.category != "nothing" for edit in edits]
    scores = score_batch(edits, right)
    means = summarise(edits, scores)
    of_unchanged = [
        score.success for score, counts in zip(score_batch(edits, unchanged), changing, strict=True) if counts
    ]
    of_wrong = [score.success for score in score_batch(edits, way(render_batch(wrong)))]
    of_over = [score.preservation for score in score_batch(edits, way(render_batch(over)))]
    return {
        **parse_errors(targets, parse(right)),
        "missed": 1 - _share([score.success for score in scores]),
        "accepted_unchanged": _share(of_unchanged),
        "accepted_wrong": _share(of_wrong),
        "preservation": means["preservation"],
        "realism": means["realism"],
        "preservation_over_edit": _share(of_over),
    }


def _share(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0
