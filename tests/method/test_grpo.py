"""Flow-GRPO's formulas: the sampler is the policy, probabilities are exact, and the surrogate is a policy gradient."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.method import (
    Move,
    advantages,
    clipped_surrogate,
    has_spread,
    judge_reward,
    levels,
    log_prob,
    policy_kl,
    policy_rollout,
    renoise_move,
    rollout,
    sampler_levels,
    sde_move,
)

MOVES: dict[str, Move] = {"renoise": renoise_move, "sde": functools.partial(sde_move, noise=0.7)}


def field(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) + t[:, None, None, None]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_renoising_policy_is_the_sampler(steps: int) -> None:
    noises, schedule = torch.randn(steps, 3, 2, 4, 4), sampler_levels(levels(steps, 3.0), 3)
    trajectory = policy_rollout(renoise_move, field, noises, schedule)
    assert torch.equal(trajectory.x0, rollout(field, noises, schedule))
    assert torch.equal(trajectory.states[0], noises[0])
    assert trajectory.states.shape == noises.shape
    assert trajectory.log_probs.shape == (steps - 1, 3)


@pytest.mark.parametrize("name", MOVES)
def test_log_probabilities_of_a_rollout_are_those_of_its_moves(name: str) -> None:
    noises, schedule = normal(4, 3, 2, 4, 4), sampler_levels(levels(4, 3.0).double(), 3)
    move = MOVES[name]
    trajectory = policy_rollout(move, field, noises, schedule)
    for i in range(3):
        x, t, t_next = trajectory.states[i], schedule[i], schedule[i + 1]
        mean, deviation = move(x, field(x, t), t, t_next)
        scale = deviation[:, None, None, None].expand_as(mean)
        expected = torch.distributions.Normal(mean, scale).log_prob(trajectory.states[i + 1]).mean(dim=(1, 2, 3))
        torch.testing.assert_close(trajectory.log_probs[i], expected)


def test_log_probabilities_of_half_precision_are_fp32() -> None:
    x, mean = torch.randn(2, 3, 2, 4, 4).bfloat16()
    found = log_prob(x, mean, torch.full((3,), 0.5).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, log_prob(x.float(), mean.float(), torch.full((3,), 0.5)))


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_the_sde_keeps_the_flows_marginals(t: float) -> None:
    """x0 ~ N(1, 0.5²): a small step of the SDE takes the distribution at t to that at t', as the flow does."""
    t_next, count = t - 1e-3, 400_000
    mean_0, deviation_0 = 1.0, 0.5

    def marginal(time: float) -> tuple[float, float]:
        return (1 - time) * mean_0, math.sqrt(((1 - time) * deviation_0) ** 2 + time**2)

    mean_t, deviation_t = marginal(t)
    x = mean_t + deviation_t * normal(1, 1, 1, count)
    # The velocity that flow matching learns: E[ε - x0 | x_t], linear for Gaussians.
    slope = (t - (1 - t) * deviation_0**2) / deviation_t**2
    velocity = -mean_0 + slope * (x - mean_t)
    mean, deviation = MOVES["sde"](x, velocity, torch.tensor([t]).double(), torch.tensor([t_next]).double())
    found = mean + deviation[:, None, None, None] * normal(1, 1, 1, count)
    expected_mean, expected_deviation = marginal(t_next)
    # Compared with what the step does to the same sample without noise; the two differ by σ² dt if a sign is wrong.
    assert float(found.mean()) == pytest.approx(expected_mean, abs=5e-3)
    exact = float((mean.var() + deviation.square()).sqrt())
    assert exact / float(x.std()) == pytest.approx(expected_deviation / deviation_t, abs=3e-6 + 1e-6 / (1 - t) ** 2)


def test_at_pure_noise_the_sde_has_the_next_levels_deviation() -> None:
    one, t_next = torch.ones(1), torch.tensor([0.9])
    mean, deviation = MOVES["sde"](torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), one, t_next)
    variance = 0.7**2 / (1 - 0.9)
    assert float(deviation) == pytest.approx(math.sqrt(variance * 0.1), rel=1e-5)
    assert float(mean) == pytest.approx(1 - variance * 0.1 / 2, rel=1e-5)


def test_without_noise_the_sde_is_the_flow() -> None:
    x, v = normal(2, 1, 3, 3), normal(2, 1, 3, 3)
    t, t_next = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.8, 0.2]).double()
    mean, deviation = sde_move(x, v, t, t_next, 1e-12)
    torch.testing.assert_close(mean, x + (t_next - t)[:, None, None, None] * v)
    assert float(deviation.max()) < 1e-9


def test_rewards_are_probabilities_of_right_answers() -> None:
    odds = torch.tensor([[2.0, 1.0], [2.0, float("nan")], [float("nan")] * 2])
    wants_yes = torch.tensor([[True, False], [False, True], [True, True]])
    asked = torch.tensor([[True, True], [True, False], [False, False]])
    p = torch.tensor([2.0, 1.0]).sigmoid()
    expected = torch.stack([(p[0] + 1 - p[1]) / 2, 1 - p[0], torch.tensor(0.0)])
    torch.testing.assert_close(judge_reward(odds, wants_yes, asked), expected)


rewards = st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


@given(rewards, st.floats(0.1, 5))
def test_advantages_are_centred_ordered_and_bounded(rows: list[list[float]], limit: float) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    found = advantages(values, values.std(dim=1, keepdim=True, correction=0), limit)
    assert float(found.abs().max()) <= limit
    for row, advantage in zip(values, found, strict=True):
        order = row.argsort()
        assert bool((advantage[order].diff() >= 0).all())
        if float(advantage.abs().max()) < limit:
            assert float(advantage.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_a_group_without_spread_teaches_exactly_nothing(value: float) -> None:
    values = torch.tensor([[value] * 7, [0.0, 1, 0, 1, 0, 1, 0]])
    spread = torch.full((1, 1), 1e-3)
    assert torch.equal(has_spread(values), torch.tensor([False, True]))
    found = advantages(values, spread, 5.0)
    assert torch.equal(found[0], torch.zeros(7))
    assert float(found[1].abs().min()) > 0


def test_a_spread_of_all_weighs_groups_by_how_much_they_differ() -> None:
    values = torch.tensor([[0.0, 1.0], [0.4, 0.6]])
    own = advantages(values, values.std(dim=1, keepdim=True, correction=0), 5.0)
    common = advantages(values, values.std(correction=0).view(1, 1), 5.0)
    torch.testing.assert_close(own[0], own[1], rtol=1e-2, atol=0)
    torch.testing.assert_close(common[0], 5 * common[1])


def test_the_surrogates_gradient_is_the_advantage_weighted_score() -> None:
    mean = normal(4, 2, 3, 3).requires_grad_()
    deviation = torch.rand(4).double() + 0.5
    x = (mean + deviation[:, None, None, None] * normal(4, 2, 3, 3)).detach()
    advantage = torch.tensor([1.5, -0.3, 0.0, 2.0]).double()
    new = log_prob(x, mean, deviation)
    (found,) = torch.autograd.grad(clipped_surrogate(new, new.detach(), advantage, 1e-4).sum(), mean)
    score = (x - mean) / deviation[:, None, None, None].square() / mean[0].numel()
    torch.testing.assert_close(found, (-advantage[:, None, None, None] * score).detach())


@pytest.mark.parametrize(("advantage", "ratio", "teaches"), [(1, 1.5, False), (1, 0.5, True), (-1, 0.5, False)])
def test_what_has_moved_enough_is_clipped(advantage: float, ratio: float, teaches: bool) -> None:
    new = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate(new, torch.zeros(1), torch.tensor([float(advantage)]), 0.2).sum().backward()
    assert new.grad is not None
    assert bool(new.grad.abs() > 0) == teaches


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, reference = normal(3, 2, 4, 4), normal(3, 2, 4, 4)
    deviation = torch.tensor([0.3, 0.6, 0.9]).double()
    scale = deviation[:, None, None, None].expand_as(mean)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, scale), torch.distributions.Normal(reference, scale)
    )
    torch.testing.assert_close(policy_kl(mean, reference, deviation), expected.mean(dim=(1, 2, 3)))
    assert torch.equal(policy_kl(mean, mean, deviation), torch.zeros(3).double())


@pytest.mark.parametrize("name", MOVES)
def test_a_toy_policy_learns_what_is_rewarded(name: str) -> None:
    """A velocity of one number; the reward is high where the result is near 2, and has no gradient."""
    move, group = MOVES[name], 16
    schedule = sampler_levels(levels(4, 3.0), group)
    weight = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.Adam([weight], lr=0.1)
    means = []
    for _ in range(40):

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return (x - weight) / t[:, None, None, None]  # so that x̂0 is the weight

        with torch.no_grad():
            trajectory = policy_rollout(move, velocity, torch.randn(4, group, 1, 2, 2), schedule)
            reward = -(trajectory.x0.mean(dim=(1, 2, 3)) + 0.1 * trajectory.states[-1].mean(dim=(1, 2, 3)) - 2).square()
            means.append(float(reward.mean()))
            row = reward[None]
            better = advantages(row, row.std(dim=1, keepdim=True), 5.0)[0]
        for i in range(3):
            x, t, t_next = trajectory.states[i], schedule[i], schedule[i + 1]
            new = log_prob(trajectory.states[i + 1], *move(x, velocity(x, t), t, t_next))
            clipped_surrogate(new, trajectory.log_probs[i], better, 0.2).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 1
