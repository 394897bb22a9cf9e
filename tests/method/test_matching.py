"""Eq. 14-20: flow matching, the score gap and its surrogate, DMD on distributions with known scores."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.method import (
    Normaliser,
    decoupled_dmd_loss,
    denoising_loss,
    dmd_loss,
    flow_matching_loss,
    gap_at,
    guided,
    interpolate,
    per_pixel,
    per_sample,
    query_times,
    redraw_loss,
    redrawn,
    score_gap,
    surrogate_loss,
    to_x0,
    velocity_target,
)
from nopair.types import Velocity

SHAPE = (3, 2, 4, 5)
both = pytest.mark.parametrize("normaliser", [per_sample, per_pixel])


def only(image: Tensor) -> Velocity:
    """The exact velocity field when `image` is all the data there is: it estimates `image` from any x_t."""
    return lambda x, t: (x - image) / t[:, None, None, None]


def gaussian(mean: Tensor, std: float) -> Velocity:
    """The exact velocity field of the data distribution N(mean, std²), from E[x0 | x_t]."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        x0 = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (x - (1 - t) * mean)
        return (x - x0) / t

    return velocity


def unit(x: Tensor, real_x0: Tensor) -> Tensor:
    return torch.ones(len(x), 1, 1, 1, dtype=x.dtype)


def test_flow_matching_is_zero_for_the_true_velocity_and_the_mean_square_off_it() -> None:
    x0, noise, error = torch.randn(3, *SHAPE)
    v = velocity_target(x0, noise)
    assert torch.equal(flow_matching_loss(v, x0, noise), torch.zeros(3))
    torch.testing.assert_close(flow_matching_loss(v + error, x0, noise), error.square().mean(dim=(1, 2, 3)))


def test_denoising_trains_the_field_and_not_the_sample() -> None:
    x0, noise = torch.randn(2, *SHAPE)
    x0.requires_grad_()
    weight = torch.tensor(0.5, requires_grad=True)
    t = torch.rand(3)
    loss = denoising_loss(x0, lambda x, t: weight * x, t, noise)
    torch.testing.assert_close(loss, flow_matching_loss(0.5 * interpolate(x0, noise, t), x0, noise))
    loss.sum().backward()
    assert weight.grad is not None
    assert weight.grad != 0
    assert x0.grad is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 0.4), st.floats(0.5, 1.0), st.floats(0.2, 10.0))
def test_query_times_stay_inside_their_range(u: list[float], low: float, high: float, shift: float) -> None:
    t = query_times(torch.tensor(u, dtype=torch.float64), low, high, shift)
    assert (t >= low).all()
    assert (t <= high + 1e-12).all()


def test_query_times_without_shift_are_uniform_and_the_top_may_differ_by_sample() -> None:
    u = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(query_times(u, 0.02, 0.98, 1.0), torch.tensor([0.02, 0.5, 0.98]))
    torch.testing.assert_close(query_times(u, 0.0, torch.tensor([0.9, 0.8, 0.7]), 1.0), torch.tensor([0.0, 0.4, 0.7]))


def test_normalisers_measure_the_distance_to_the_teacher() -> None:
    x, real = torch.randn(2, *SHAPE)
    distance = (x - real).abs()
    assert per_sample(x, real).shape == (3, 1, 1, 1)
    assert per_pixel(x, real).shape == (3, 1, 4, 5)
    torch.testing.assert_close(per_sample(x, real).flatten(), distance.flatten(1).mean(dim=1))
    torch.testing.assert_close(per_pixel(x, real)[:, 0], distance.mean(dim=1))
    torch.testing.assert_close(per_pixel(x, x + 0.3), per_sample(x, x + 0.3).expand(3, 1, 4, 5))


@both
def test_the_gap_points_from_real_to_fake(normaliser: Normaliser) -> None:
    x, real, fake = torch.randn(3, *SHAPE)
    gap = score_gap(x, real, fake, normaliser)
    torch.testing.assert_close(gap * normaliser(x, real), fake - real)
    # Following it down leads to the teacher: from the fake estimate, one step of w arrives there.
    torch.testing.assert_close(fake - normaliser(x, real) * gap, real)


@both
def test_the_gap_does_not_depend_on_the_latents_scale(normaliser: Normaliser) -> None:
    x, real, fake = torch.randn(3, *SHAPE)
    torch.testing.assert_close(score_gap(7 * x, 7 * real, 7 * fake, normaliser), score_gap(x, real, fake, normaliser))


@both
def test_the_gap_is_finite_where_the_teacher_agrees(normaliser: Normaliser) -> None:
    x, fake = torch.randn(2, *SHAPE)
    assert torch.isfinite(score_gap(x, x, fake, normaliser)).all()
    assert (score_gap(x, x, x, normaliser) == 0).all()


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(0, 1000))
def test_the_surrogates_gradient_is_the_gap_over_the_latents_size(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    gap = torch.randn(shape, generator=generator, dtype=torch.float64)
    loss = surrogate_loss(x, gap)
    torch.testing.assert_close(loss, 0.5 * gap.square().mean(dim=(1, 2, 3)))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(gradient, gap / (shape[1] * shape[2] * shape[3]))


def test_dmd_asks_both_fields_about_the_re_noised_sample() -> None:
    x0, real, fake, noise = torch.randn(4, *SHAPE)
    t = torch.tensor([0.1, 0.5, 0.9])
    asked: list[tuple[Tensor, Tensor]] = []

    def watched(field: Velocity) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            asked.append((x, t))
            assert not torch.is_grad_enabled(), "no graph is built, so none is kept in memory"
            return field(x, t)

        return velocity

    gap = gap_at(x0, watched(only(real)), watched(only(fake)), t, noise, per_sample)
    torch.testing.assert_close(gap, (fake - real) / per_sample(x0, real), rtol=1e-4, atol=1e-5)
    for x_t, time in asked:
        torch.testing.assert_close(x_t, interpolate(x0, noise, t))
        assert torch.equal(time, t)
    assert len(asked) == 2


@both
def test_equal_fields_leave_the_student_alone(normaliser: Normaliser) -> None:
    x0, noise = torch.randn(2, *SHAPE)
    x0.requires_grad_()
    field: Velocity = lambda x, t: torch.sin(x) + t[:, None, None, None]  # noqa: E731
    loss = dmd_loss(x0, field, field, torch.rand(3), noise, normaliser)
    assert torch.equal(loss, torch.zeros(3))
    assert torch.equal(torch.autograd.grad(loss.sum(), x0)[0], torch.zeros(SHAPE))


def test_no_gradient_reaches_the_teacher_or_the_fake_score() -> None:
    x0, noise = torch.randn(2, *SHAPE)
    x0.requires_grad_()
    real, fake = torch.tensor(0.2, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    dmd_loss(x0, lambda x, t: real * x, lambda x, t: fake * x, torch.rand(3), noise, per_sample).sum().backward()
    assert real.grad is None
    assert fake.grad is None
    assert x0.grad is not None
    assert (x0.grad != 0).any()


def test_descent_brings_the_students_distribution_to_the_teachers() -> None:
    """A student N(m, ½²) against a teacher N(target, ½²), both with exact scores: m must arrive and stay."""
    target = torch.tensor([1.5, -2.0]).reshape(1, 2, 1, 1)
    mean = torch.zeros(1, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.SGD([mean], lr=0.2)
    for _ in range(150):
        x0 = mean + 0.5 * torch.randn(64, 2, 1, 1)
        t = query_times(torch.rand(64), 0.02, 0.98, 1.0)
        fake = gaussian(mean.detach(), 0.5)
        loss = dmd_loss(x0, gaussian(target, 0.5), fake, t, torch.randn_like(x0), per_sample)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    torch.testing.assert_close(mean.detach(), target, atol=0.05, rtol=0)


def test_decoupled_at_one_time_is_dmd_against_the_guided_teacher() -> None:
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    t, scale = torch.rand(3, dtype=torch.float64), torch.tensor([1.0, 3.0, 7.5], dtype=torch.float64)
    cond, uncond, fake = (gaussian(mean, 0.7) for mean in torch.randn(3, *SHAPE, dtype=torch.float64))
    plain = dmd_loss(x0, lambda x, t: guided(cond(x, t), uncond(x, t), scale), fake, t, noise, unit)
    torch.testing.assert_close(decoupled_dmd_loss(x0, cond, uncond, fake, scale, (t, t), noise, unit), plain)


def test_decoupled_guidance_is_asked_at_its_own_times() -> None:
    x0, noise = torch.randn(2, *SHAPE)
    cond, uncond, fake = torch.randn(3, *SHAPE)
    matching, guidance = torch.tensor([0.3, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.3])
    times: dict[str, list[Tensor]] = {"cond": [], "uncond": [], "fake": []}

    def watched(name: str, image: Tensor) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times[name].append(t)
            return only(image)(x, t)

        return velocity

    decoupled_dmd_loss(
        x0, watched("cond", cond), watched("uncond", uncond), watched("fake", fake), torch.full((3,), 2.0),
        (matching, guidance), noise, per_sample,
    )  # fmt: skip
    assert torch.equal(times["fake"][0], matching)
    assert torch.equal(times["uncond"][0], guidance)
    assert torch.equal(torch.stack(times["cond"]), torch.stack([matching, guidance]))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_redrawing_under_a_teacher_that_knows_one_image_gives_that_image(steps: int) -> None:
    x0, image, noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    asked: list[Tensor] = []

    def real(x: Tensor, time: Tensor) -> Tensor:
        asked.append(time)
        return only(image)(x, time)

    torch.testing.assert_close(redrawn(x0, real, t, noise, steps), image)
    torch.testing.assert_close(torch.stack(asked), torch.stack([t * (steps - i) / steps for i in range(steps)]))


def test_redrawing_from_little_noise_leaves_a_sample_that_the_teacher_would_draw_so() -> None:
    """A teacher of N(mean, ½²): its flow takes a noised sample to one of its own, near the sample if t is near 0."""
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    real = gaussian(torch.zeros(SHAPE, dtype=torch.float64), 0.5)
    far = [
        (redrawn(x0, real, torch.full((3,), t, dtype=torch.float64), noise, 50) - x0).abs().mean().item()
        for t in (1e-3, 0.3, 0.9)
    ]
    assert far[0] < 1e-2
    assert far == sorted(far)


@both
def test_the_redrawing_gradient_leads_to_what_the_teacher_made(normaliser: Normaliser) -> None:
    x0, image, noise = torch.randn(3, *SHAPE)
    x0.requires_grad_()
    redraw_loss(x0, only(image), torch.full((3,), 0.5), noise, 2, normaliser).sum().backward()
    assert x0.grad is not None
    wanted = (x0.detach() - image) / normaliser(x0.detach(), image) / x0[0].numel()
    torch.testing.assert_close(x0.grad, wanted, rtol=1e-3, atol=1e-5)


def test_no_gradient_reaches_the_teacher_that_redraws() -> None:
    x0, noise = torch.randn(2, *SHAPE)
    weight = torch.tensor(0.2, requires_grad=True)
    redraw_loss(x0.requires_grad_(), lambda x, t: weight * x, torch.rand(3), noise, 2, per_sample).sum().backward()
    assert weight.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, t: flow_matching_loss(x, y, x),
        lambda x, y, t: surrogate_loss(x, y),
        lambda x, y, t: dmd_loss(x, lambda x, t: x, lambda x, t: -x, t, y, per_pixel),
        lambda x, y, t: redraw_loss(x, lambda x, t: -x, t, y, 2, per_sample),
        lambda x, y, t: denoising_loss(x, lambda x, t: x, t, y),
    ],
)
def test_losses_of_bf16_latents_are_fp32(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    x, y = torch.randn(2, *SHAPE).bfloat16()
    exact = loss(x.double(), y.double(), torch.full((3,), 0.5).double())
    result = loss(x, y, torch.full((3,), 0.5))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


def test_to_x0_of_a_single_images_field_is_that_image() -> None:
    """The helper of these tests is itself right."""
    x, image = torch.randn(2, *SHAPE)
    t = torch.tensor([0.2, 0.6, 1.0])
    torch.testing.assert_close(to_x0(x, only(image)(x, t), t), image, rtol=1e-4, atol=1e-5)
