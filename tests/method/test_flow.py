"""Eq. 1-6: noising and its inverse, guidance, the schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.method import guided, interpolate, levels, shift_time, to_x0, velocity_target
from nopair.method.flow import at_least_fp32

shapes = st.tuples(*[st.integers(1, 4)] * 4)
shifts = st.floats(0.1, 20.0)


def random(shape: tuple[int, ...], seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@given(shapes, st.integers(0, 10_000), st.data())
def test_to_x0_inverts_interpolate_at_every_time(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    x0, noise = random(shape, seed, 2)
    t = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=shape[0], max_size=shape[0])), dtype=torch.float64)
    x_t = interpolate(x0, noise, t)
    assert x_t.shape == x0.shape
    torch.testing.assert_close(to_x0(x_t, velocity_target(x0, noise), t), x0)


def test_time_runs_from_clean_to_noise() -> None:
    x0, noise = random((2, 3, 4, 5), 0, 2)
    assert torch.equal(interpolate(x0, noise, torch.tensor([0.0, 1.0]).double())[0], x0[0])
    assert torch.equal(interpolate(x0, noise, torch.tensor([0.0, 1.0]).double())[1], noise[1])
    # The velocity is the time derivative of x_t.
    later, earlier = (torch.full((2,), t, dtype=torch.float64) for t in (0.75, 0.5))
    slope = (interpolate(x0, noise, later) - interpolate(x0, noise, earlier)) / 0.25
    torch.testing.assert_close(slope, velocity_target(x0, noise))


def test_low_precision_latents_are_noised_in_fp32() -> None:
    x0, noise = (x.bfloat16() for x in random((2, 1, 2, 2), 0, 2))
    t = torch.rand(2)
    assert interpolate(x0, noise, t).dtype == torch.float32
    assert to_x0(x0, noise, t).dtype == torch.float32
    assert at_least_fp32(x0).dtype == torch.float32
    assert at_least_fp32(x0.double()).dtype == torch.float64


def test_guidance_scale_acts_per_sample() -> None:
    cond, uncond = random((4, 2, 3, 3), 0, 2)
    v = guided(cond, uncond, torch.tensor([0.0, 1.0, 3.0, -1.0]).double())
    assert torch.equal(v[0], uncond[0])
    torch.testing.assert_close(v[1], cond[1])
    torch.testing.assert_close(v[2], uncond[2] + 3 * (cond[2] - uncond[2]))
    torch.testing.assert_close(v[3], 2 * uncond[3] - cond[3])


@given(st.floats(0, 1), shifts)
def test_shift_keeps_the_unit_interval_and_is_undone_by_its_inverse(t: float, shift: float) -> None:
    time = torch.tensor([t], dtype=torch.float64)
    shifted = shift_time(time, shift)
    assert 0 <= shifted.item() <= 1
    assert shift <= 1 or shifted.item() >= t
    torch.testing.assert_close(shift_time(shifted, 1 / shift), time)


def test_shift_one_is_identity_and_ends_stay() -> None:
    t = torch.linspace(0, 1, 7)
    assert torch.equal(shift_time(t, 1.0), t)
    assert shift_time(t, 6.0)[[0, -1]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("steps", "shift", "expected"),
    [
        (4, 6.0, [1.0, 0.9474, 0.8571, 0.6667]),
        (4, 1.0, [1.0, 0.75, 0.5, 0.25]),
        (4, 3.0, [1.0, 0.9, 0.75, 0.5]),
        (1, 6.0, [1.0]),
    ],
)
def test_known_schedules(steps: int, shift: float, expected: list[float]) -> None:
    torch.testing.assert_close(levels(steps, shift), torch.tensor(expected), atol=5e-5, rtol=0)


@given(st.integers(1, 50), shifts)
def test_a_schedule_falls_strictly_from_one_and_stays_above_zero(steps: int, shift: float) -> None:
    schedule = levels(steps, shift)
    assert schedule.shape == (steps,)
    assert schedule.dtype == torch.float32
    assert schedule[0] == 1
    assert schedule[-1] > 0
    assert (schedule.diff() < 0).all()


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -3.0)])
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
        levels(steps, shift)
