"""Attempts at edits as a base paints them, with what the oracle says of them.

An editor that has not finished learning hands in the right thing, badly drawn: lumpy triangles, crosses without arms.
No damage made by hand looks like that, and a judge that knows only such damage takes it for done. A base that is given
too few calls draws just so.
"""

import random
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.judges.questions import questions_for
from nopair.method.matching import redrawn
from nopair.tiny.cases import Case, compared, draw_kind, is_presence, still_there
from nopair.world.attempts import Attempt, make_attempt
from nopair.world.edits import Edit
from nopair.world.oracle import Score, score_batch
from nopair.world.render import render
from nopair.world.scenes import caption

DRAWN: Final = "drawn"
"""What this kind of attempt is called."""
_RIGHT: Final = 0.65
"""Share of right results among what is painted over."""
_BETWEEN: Final = ("unchanged", "wrong", "over", "nudged")
"""Kinds of attempt that what is painted over may lie between, as an editor's that has several answers in mind."""
_BLENDED: Final = 0.6
"""Share of what lies between two attempts."""
_MIXED: Final = 0.3
"""Share of batches that are half of what was painted over, as an editor is on the way."""
_KEPT, _LOST = 0.9, 0.6
"""Preservation from which all else counts as unchanged, and up to which it does not; between them it is debatable."""


def drawn_cases(rng: random.Random, base: Backbone, edits: Sequence[Edit]) -> list[tuple[Case, ...]]:
    """For each edit the questions about one attempt that `base` painted over under the edited caption, in one or two
    calls, each with the oracle's answer: from a time of 0.7 to 1 over one attempt, from less over a blend of two. The
    edits ask for a change. Nearly half come out badly.
    """
    if not edits:
        return []
    source = torch.Generator().manual_seed(rng.getrandbits(60))

    def attempts(kinds: Sequence[str]) -> Float[Tensor, "b 3 height width"]:
        return torch.stack(
            [make_attempt(rng, kind, edit, source).image for kind, edit in zip(kinds, edits, strict=True)]
        )

    begun = attempts(["right" if rng.random() < _RIGHT else draw_kind(rng) for _ in edits])
    between = attempts([rng.choice(_BETWEEN) for _ in edits])
    painted = _painted(rng, source, base, [caption(edit.target) for edit in edits], begun, between)
    scores = score_batch(edits, painted)
    cases = [_judged(edit, image, score) for edit, image, score in zip(edits, painted, scores, strict=True)]
    return [group for group in cases if group]


@torch.no_grad()
def _painted(
    rng: random.Random,
    source: torch.Generator,
    base: Backbone,
    captions: Sequence[str],
    images: Float[Tensor, "b 3 height width"],
    others: Float[Tensor, "b 3 height width"],
) -> Float[Tensor, "b 3 height width"]:
    device = next(base.transformer.parameters()).device
    latents, text = base.encode_image(images.to(device)), base.encode_text(captions)
    blended = [rng.random() < _BLENDED for _ in captions]
    share, t = (
        torch.tensor([rng.uniform(*(bounds if one else other)) for one in blended], device=device)
        for bounds, other in (((0.3, 0.65), (0.0, 0.0)), ((0.05, 0.5), (0.7, 1.0)))
    )
    latents = latents.lerp(base.encode_image(others.to(device)), share.view(-1, 1, 1, 1))
    noise = torch.randn(latents.shape, generator=source).to(latents)
    made = redrawn(latents, lambda x, time: base.velocity(x, time, text), t, noise, rng.choice((1, 1, 2)))
    if rng.random() < _MIXED:
        made = made.lerp(latents, 0.5)
    return base.decode_latents(made).clamp(0, 1).to(images)


def _judged(edit: Edit, image: Float[Tensor, "3 height width"], score: Score) -> tuple[Case, ...]:
    done = score.success == 1.0
    kept = True if score.preservation >= _KEPT else False if score.preservation <= _LOST else None
    attempt, before, after = Attempt(image, done, kept, None), render(edit.source), render(edit.target)
    cases = []
    for question in questions_for(edit.category, edit.instruction, edit.subject):
        ask = still_there if is_presence(question) else compared
        judged = ask(edit, attempt, question, before, after)
        if judged is not None:
            cases.append(Case(DRAWN, edit.category, before, image, after, edit.source, question, *judged))
    return tuple(cases)
