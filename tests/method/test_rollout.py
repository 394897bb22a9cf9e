"""Eq. 7-9: generation on fields whose result is known, and where its gradient flows."""

import inspect
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.method import levels, rollout, sampler_levels, training_levels
from nopair.types import Velocity


def linear_calls(weights: Sequence[Tensor]) -> Velocity:
    """v = w_i x at the i-th call: one parameter per call, to see which calls get a gradient."""
    remaining = iter(weights)
    return lambda x, t: next(remaining) * x


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.5, 8.0))
def test_a_constant_velocity_is_followed_exactly(steps: int, batch: int, shift: float) -> None:
    """With the same noise at every level, all calls agree that the clean image is noise - v."""
    noise = torch.randn(batch, 2, 3, 4)
    v = torch.randn(batch, 2, 3, 4)
    x0 = rollout(lambda x, t: v, noise.expand(steps, -1, -1, -1, -1), sampler_levels(levels(steps, shift), batch))
    torch.testing.assert_close(x0, noise - v, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 6), st.floats(0.5, 8.0))
def test_the_field_of_a_single_image_yields_that_image(steps: int, shift: float) -> None:
    """(x - a) / t is the exact velocity when `a` is all the data there is; no noise may survive, at any schedule."""
    image = torch.randn(3, 2, 4, 4)
    x0 = rollout(
        lambda x, t: (x - image) / t[:, None, None, None],
        torch.randn(steps, 3, 2, 4, 4),
        sampler_levels(levels(steps, shift), 3),
    )
    torch.testing.assert_close(x0, image, rtol=1e-4, atol=1e-4)


def test_the_recursion_re_noises_fully_with_fresh_noise() -> None:
    """Against the recursion written out by hand for three levels, with a field that depends on x and t."""
    noises = torch.randn(3, 2, 1, 2, 2)
    schedule = torch.tensor([[1.0, 1.0], [0.8, 0.7], [0.3, 0.2]])
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.sin(x) + t[:, None, None, None]

    result = rollout(velocity, noises, schedule)
    x0 = noises[0] - (torch.sin(noises[0]) + 1)
    assert torch.equal(seen[0], noises[0])
    for i in (1, 2):
        t = schedule[i][:, None, None, None]
        x = (1 - t) * x0 + t * noises[i]
        torch.testing.assert_close(seen[i], x)
        x0 = x - t * (torch.sin(x) + t)
    torch.testing.assert_close(result, x0)


def test_training_levels_are_one_and_the_level_of_the_stop() -> None:
    schedule = levels(4, 6.0)
    pair = training_levels(schedule, torch.tensor([1, 2, 3, 4, 2]))
    assert torch.equal(pair[0], torch.ones(5))
    assert torch.equal(pair[1], schedule[[0, 1, 2, 3, 1]])


@pytest.mark.parametrize("stop", [0, 5, -1])
def test_a_stop_outside_the_schedule_is_refused(stop: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match="index out of range"):
        training_levels(levels(4, 6.0), torch.tensor([stop]))


def test_stop_one_is_one_step_generation_with_zero_gradient_to_the_first_call() -> None:
    schedule = levels(4, 6.0)
    noises = torch.randn(2, 2, 3, 4, 4)
    first, second = torch.tensor(0.3, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    x0 = rollout(linear_calls([first, second]), noises, training_levels(schedule, torch.tensor([1, 1])))
    one_step = rollout(linear_calls([second]), noises[1:], sampler_levels(schedule[:1], 2))
    assert torch.equal(x0, one_step)
    gradients = torch.autograd.grad(x0.square().sum(), [first, second])
    assert gradients[0] == 0
    assert gradients[1] != 0


def test_gradient_flows_through_both_calls() -> None:
    """x0 is a known polynomial of the two parameters; so is its derivative."""
    first, second = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in (0.3, 0.6))
    noises = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    t = 0.75
    x0 = rollout(linear_calls([first, second]), noises, torch.tensor([[1.0], [t]], dtype=torch.float64))
    expected = (1 - t * second) * ((1 - t) * (1 - first) * noises[0] + t * noises[1])
    torch.testing.assert_close(x0, expected)
    gradients = torch.autograd.grad(x0.sum(), [first, second])
    torch.testing.assert_close(gradients[0], (-(1 - t * second) * (1 - t) * noises[0].sum()).detach())
    torch.testing.assert_close(gradients[1], (-t * ((1 - t) * (1 - first) * noises[0] + t * noises[1]).sum()).detach())


def test_training_and_sampling_are_the_same_chain_at_two_levels() -> None:
    schedule = levels(2, 3.0)
    noises = torch.randn(2, 3, 2, 2, 2)
    field: Velocity = lambda x, t: torch.tanh(x) * t[:, None, None, None]  # noqa: E731
    trained = rollout(field, noises, training_levels(schedule, torch.full((3,), 2)))
    sampled = rollout(field, noises, sampler_levels(schedule, 3))
    assert torch.equal(trained, sampled)


def test_noises_and_levels_must_be_as_many() -> None:
    """Without the shape checks of the tests, too."""
    with pytest.raises(ValueError, match="shorter"):
        inspect.unwrap(rollout)(lambda x, t: x, torch.randn(3, 1, 1, 1, 1), torch.ones(2, 1))
