"""A batch of B is B batches of one, for every function: no sample knows who its neighbours are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nopair.method import (
    advantages,
    clipped_surrogate,
    decoupled_dmd_loss,
    denoising_loss,
    dmd_loss,
    first_sight,
    flow_matching_loss,
    full_vocabulary_loss,
    guided,
    interpolate,
    judge_loss,
    judge_reward,
    levels,
    log_prob,
    per_pixel,
    per_sample,
    policy_kl,
    policy_rollout,
    preservation_loss,
    query_times,
    redraw_loss,
    redrawn,
    reference_loss,
    renoise_move,
    right_minus_wrong,
    rollout,
    sampler_levels,
    score_gap,
    sde_move,
    surrogate_loss,
    to_x0,
    training_levels,
    velocity_target,
    without_edit,
)

Inputs = dict[str, Tensor]


def field(x: Tensor, t: Tensor) -> Tensor:
    """Mixes the pixels of a sample, never samples."""
    return torch.sin(3 * x) + x.mean(dim=(1, 2, 3), keepdim=True) * t[:, None, None, None]


def other(x: Tensor, t: Tensor) -> Tensor:
    return torch.cos(x) - t[:, None, None, None]


SCHEDULE = levels(4, 6.0)
FUNCTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "interpolate": lambda i: interpolate(i["x"], i["y"], i["t"]),
    "velocity_target": lambda i: velocity_target(i["x"], i["y"]),
    "to_x0": lambda i: to_x0(i["x"], i["y"], i["t"]),
    "guided": lambda i: guided(i["x"], i["y"], i["scale"]),
    "rollout, training": lambda i: rollout(field, torch.stack([i["x"], i["y"]]), training_levels(SCHEDULE, i["stop"])),
    "rollout, sampling": lambda i: rollout(
        field, torch.stack([i["x"], i["y"], i["z"], i["x"]]), sampler_levels(SCHEDULE, len(i["x"]))
    ),
    "right_minus_wrong": lambda i: right_minus_wrong(i["answers"], i["wants_yes"]),
    "judge_loss": lambda i: judge_loss(i["answers"], i["wants_yes"], i["asked"], 0.3),
    "full_vocabulary_loss": lambda i: full_vocabulary_loss(i["logits"], i["right"], i["asked"], 0.3),
    "flow_matching_loss": lambda i: flow_matching_loss(i["x"], i["y"], i["z"]),
    "denoising_loss": lambda i: denoising_loss(i["x"], field, i["t"], i["y"]),
    "query_times": lambda i: query_times(i["t"], 0.01, i["scale"] / 9, 3.0),
    "per_sample": lambda i: per_sample(i["x"], i["y"]),
    "per_pixel": lambda i: per_pixel(i["x"], i["y"]),
    "score_gap": lambda i: score_gap(i["x"], i["y"], i["z"], per_sample),
    "surrogate_loss": lambda i: surrogate_loss(i["x"], i["y"]),
    "dmd_loss": lambda i: dmd_loss(i["x"], field, other, i["t"], i["y"], per_sample),
    "decoupled_dmd_loss": lambda i: decoupled_dmd_loss(
        i["x"], field, other, field, i["scale"], (i["t"], i["t"] / 2), i["y"], per_pixel
    ),
    "redrawn": lambda i: redrawn(i["x"], field, i["t"], i["y"], 3),
    "redraw_loss": lambda i: redraw_loss(i["x"], field, i["t"], i["y"], 3, per_sample),
    "reference_loss": lambda i: reference_loss(i["x"], i["y"], i["nothing"]),
    "preservation_loss": lambda i: preservation_loss(i["x"], i["y"], i["z"][:, :1]),
    "first_sight": lambda i: first_sight(i["x"], field, other, i["t"], i["y"], 0.5)[1],
    "without_edit": lambda i: without_edit(i["x"], i["y"], i["z"][:, :1]),
    "judge_reward": lambda i: judge_reward(i["answers"], i["wants_yes"], i["asked"]),
    "renoise_move": lambda i: renoise_move(i["x"], i["y"], i["t"], i["t"] / 2)[0],
    "sde_move": lambda i: sde_move(i["x"], i["y"], i["t"], i["t"] / 2, 0.7)[0],
    "log_prob": lambda i: log_prob(i["x"], i["y"], i["t"]),
    "policy_rollout": lambda i: (
        policy_rollout(
            renoise_move, field, torch.stack([i["x"], i["y"], i["z"], i["x"]]), sampler_levels(SCHEDULE, len(i["x"]))
        ).x0
    ),
    "advantages, a row for each": lambda i: advantages(i["answers"], i["t"][:, None], 1.0),
    "clipped_surrogate": lambda i: clipped_surrogate(i["t"], i["scale"], i["scale"], 0.1),
    "policy_kl": lambda i: policy_kl(i["x"], i["y"], i["t"]),
}


def inputs(batch: int) -> Inputs:
    return {
        **{name: torch.randn(batch, 2, 3, 4, dtype=torch.float64) for name in "xyz"},
        "t": torch.linspace(0.1, 1.0, batch, dtype=torch.float64),
        "scale": torch.linspace(1.0, 7.5, batch, dtype=torch.float64),
        "stop": torch.arange(batch) % 4 + 1,
        "answers": torch.randn(batch, 3, dtype=torch.float64),
        "wants_yes": torch.rand(batch, 3) > 0.5,
        "asked": torch.rand(batch, 3) > 0.4,
        "logits": torch.randn(batch, 3, 6, dtype=torch.float64),
        "right": torch.randint(6, (batch, 3)),
        "nothing": torch.arange(batch) % 2 == 0,
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_is_its_samples_one_by_one(name: str) -> None:
    whole = inputs(5)
    function = FUNCTIONS[name]
    parts = [function({key: value[k : k + 1] for key, value in whole.items()}) for k in range(5)]
    torch.testing.assert_close(function(whole), torch.cat(parts))
