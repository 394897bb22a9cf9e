"""What the model cards say: measured quality of the tiny checkpoints, on scenes drawn with seeds that training
never uses."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.judges.base import Judge
from nopair.method.flow import guided, levels
from nopair.tiny.cases import Case, draw_edit, is_presence, make_case
from nopair.tiny.drawn import drawn_cases
from nopair.types import Text
from nopair.world.attempts import KINDS
from nopair.world.edits import random_scene
from nopair.world.oracle import DESCRIBED, REALISM_FULL, REALISM_NONE, share_right
from nopair.world.parse import parse
from nopair.world.render import render_batch
from nopair.world.scenes import SIZE, Scene, Thing, caption

SEED: Final = 990_000
BATCH: Final = 32


def scenes(count: int, seed: int = SEED) -> list[Scene]:
    """Random scenes of one to three things."""
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


@torch.no_grad()
def reconstruction_psnr(backbone: Backbone, count: int = 128) -> float:
    """Peak signal-to-noise ratio in dB of encode and decode, from the mean squared error over all images."""
    pixels = render_batch(scenes(count))
    decoded = torch.cat([_round_trip(backbone, chunk) for chunk in pixels.split(BATCH)])
    return -10 * math.log10(float((decoded - pixels).square().mean()))


def _round_trip(backbone: Backbone, pixels: Tensor) -> Tensor:
    return backbone.decode_latents(backbone.encode_image(pixels)).clamp(0, 1)


@torch.no_grad()
def sample_base(
    backbone: Backbone, prompts: list[str], *, guidance: float, steps: int, seed: int
) -> Float[Tensor, "batch 3 height width"]:
    """Euler sampling of the text-to-image base with guidance; pixels in [0, 1]."""
    text, empty = backbone.encode_text(prompts), backbone.encode_text([""])
    negative = Text(empty.features.expand(len(prompts), -1, -1), empty.lengths * len(prompts))
    x = torch.randn(len(prompts), *backbone.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    times = [*levels(steps, backbone.shift_for(SIZE, SIZE, steps)).tolist(), 0.0]
    scale = torch.full((len(prompts),), guidance)
    for now, after in itertools.pairwise(times):
        t = torch.full((len(prompts),), now)
        velocity = guided(backbone.velocity(x, t, text), backbone.velocity(x, t, negative), scale)
        x = x + (after - now) * velocity
    return backbone.decode_latents(x).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class BaseQuality:
    """Shares in [0, 1]: attributes of things right, pattern and colour of backgrounds right, whole captions right;
    realism."""

    attributes: float
    backgrounds: float
    captions: float
    realism: float


def base_quality(backbone: Backbone, *, count: int = 96, guidance: float = 3.0, steps: int = 20) -> BaseQuality:
    """The oracle's reading of samples against the captions they were sampled from."""
    wanted = scenes(count, SEED + 1)
    prompts = [caption(scene) for scene in wanted]
    chunks = range(0, count, BATCH)
    images = torch.cat(
        [sample_base(backbone, prompts[i : i + BATCH], guidance=guidance, steps=steps, seed=i) for i in chunks]
    )
    found = parse(images)
    rendered = render_batch(found)
    distance = (images - rendered).square().mean(dim=(1, 2, 3)).sqrt()
    realism = ((REALISM_NONE - distance) / (REALISM_NONE - REALISM_FULL)).clamp(0, 1).mean()
    shares = [_share(a.at(cell), b.at(cell)) for a, b in zip(wanted, found, strict=True) for cell in range(4)]
    attributes = [share for share in shares if share is not None]
    grounds = [
        (a.background.colour, a.background.pattern) == (b.background.colour, b.background.pattern)
        for a, b in zip(wanted, found, strict=True)
    ]
    whole = [caption(a) == caption(b) for a, b in zip(wanted, found, strict=True)]
    return BaseQuality(sum(attributes) / len(attributes), sum(grounds) / count, sum(whole) / count, float(realism))


def _share(wanted: Thing | None, found: Thing | None) -> float | None:
    """Share of described attributes right in one cell; an empty cell that should be empty does not count."""
    return None if wanted is None and found is None else share_right(found, wanted, DESCRIBED)


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """Accuracy in [0, 1], overall and by (category, question, kind of attempt), with the number of questions asked."""

    accuracy: float
    by_group: dict[tuple[str, str, str], tuple[float, int]]

    def by(self, axis: int) -> dict[str, float]:
        """Accuracy along one axis: 0 category, 1 question, 2 kind of attempt."""
        right: dict[str, float] = defaultdict(float)
        asked: dict[str, int] = defaultdict(int)
        for key, (accuracy, count) in self.by_group.items():
            right[key[axis]] += accuracy * count
            asked[key[axis]] += count
        return {name: right[name] / asked[name] for name in asked}


def judge_quality(judge: Judge, backbone: Backbone, count: int = 1200) -> JudgeQuality:
    """Accuracy on attempts of all kinds, two of three seen through the backbone's autoencoder."""
    rng = random.Random(SEED + 2)
    source = torch.Generator().manual_seed(SEED)
    groups: list[tuple[Case, ...]] = []
    kinds = list(KINDS)
    while len(groups) < count:
        kind = kinds[len(groups) % len(kinds)]
        group = make_case(rng, source, kind, draw_edit(rng, kind))
        if group:
            groups.append(group)
    right: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for start in range(0, count, BATCH):
        _ask(judge, backbone, groups[start : start + BATCH], right)
    return _quality(right)


def drawn_quality(judge: Judge, backbone: Backbone, count: int = 240) -> JudgeQuality:
    """Accuracy on attempts that the base drew; in place of the kind of attempt it says what the oracle does, Yes or No
    to a good edit.
    """
    rng = random.Random(SEED + 3)
    right: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for _ in range(0, count, BATCH):
        edits = [edit for edit in (draw_edit(rng, "right") for _ in range(BATCH)) if edit.category != "nothing"]
        groups = drawn_cases(rng, backbone, edits)
        with torch.no_grad():
            odds = judge.yes_minus_no(
                torch.stack([group[0].reference for group in groups]),
                torch.stack([group[0].attempt for group in groups]),
                [[case.question for case in group] for group in groups],
            )
        for i, group in enumerate(groups):
            for j, case in enumerate(group):
                good = "good" if case.answer_yes == case.question.wants_yes else "bad"
                key = case.category, case.question.kind, good
                right[key].append(bool((odds[i, j] > 0) == case.answer_yes))
    return _quality(right)


def _quality(right: Mapping[tuple[str, str, str], list[bool]]) -> JudgeQuality:
    answers = [answer for row in right.values() for answer in row]
    by_group = {key: (sum(row) / len(row), len(row)) for key, row in sorted(right.items())}
    return JudgeQuality(sum(answers) / len(answers), by_group)


@torch.no_grad()
def _ask(
    judge: Judge, backbone: Backbone, groups: list[tuple[Case, ...]], right: dict[tuple[str, str, str], list[bool]]
) -> None:
    before = torch.stack([group[0].reference for group in groups])
    attempts = torch.stack([group[0].attempt for group in groups])
    painted = torch.tensor([i % 3 < 2 for i in range(len(groups))]).view(-1, 1, 1, 1)
    attempts = torch.where(painted, _round_trip(backbone, attempts), attempts)
    odds = judge.yes_minus_no(before, attempts, [[case.question for case in group] for group in groups])
    for i, group in enumerate(groups):
        for j, case in enumerate(group):
            kind = "presence" if is_presence(case.question) else case.question.kind
            right[case.category, kind, case.kind].append(bool((odds[i, j] > 0) == case.answer_yes))
