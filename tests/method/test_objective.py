"""Eq. 21-23: the places to keep, the weighted total and the do-nothing rule."""

import math

import pytest
import torch
from torch import Tensor

from nopair.errors import DataError
from nopair.method import (
    Weights,
    does_nothing,
    first_sight,
    preservation_loss,
    reference_loss,
    student_losses,
    without_edit,
)
from nopair.types import EditBatch


def batch(categories: tuple[str, ...], captions: tuple[str, ...], edited: tuple[str, ...]) -> EditBatch:
    n = len(categories)
    return EditBatch(torch.zeros(n, 3, 4, 4), ("do it",) * n, captions, edited, categories, ("",) * n)


def wave(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) * t[:, None, None, None]


def test_the_total_is_the_weighted_mean_over_the_batch() -> None:
    judge, dmd, reference, drift, redraw = torch.rand(5, 5)
    weights = Weights(judge=0.02, dmd=1.0, reference=3.0, preservation=0.5, redraw=2.0)
    losses = student_losses(weights, judge, dmd, reference, drift, redraw)
    total = 0.02 * judge + dmd + 3.0 * reference + 0.5 * drift + 2.0 * redraw
    torch.testing.assert_close(losses.total, total.mean())
    assert losses.metrics() == pytest.approx(
        {
            "judge": judge.mean().item(),
            "dmd": dmd.mean().item(),
            "reference": reference.mean().item(),
            "preservation": drift.mean().item(),
            "redraw": redraw.mean().item(),
            "total": losses.total.item(),
        }
    )


def test_a_term_of_weight_zero_is_out_of_the_graph() -> None:
    judge = torch.tensor([math.nan, 1.0], requires_grad=True)
    dmd = torch.tensor([1.0, 2.0], requires_grad=True)
    losses = student_losses(Weights(judge=0.0, dmd=2.0), judge, dmd, *torch.zeros(3, 2))
    losses.total.backward()
    assert losses.total.item() == 3.0
    assert judge.grad is None
    assert dmd.grad is not None
    assert dmd.grad.tolist() == [1.0, 1.0]
    assert math.isnan(losses.metrics()["judge"])  # reported, not hidden


def test_a_bad_term_that_counts_is_not_hidden() -> None:
    assert math.isnan(student_losses(Weights(1.0, 1.0), torch.tensor([math.nan]), *torch.ones(4, 1)).total)


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (-1.0, 1.0, 0.0), (1.0, 1.0, -0.1), (math.nan, 1.0, 0.0)])
def test_impossible_weights_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="one of them > 0"):
        Weights(*values)


@pytest.mark.parametrize("place", range(5))
def test_every_weight_is_guarded_and_is_enough_alone(place: int) -> None:
    Weights(*(float(number == place) for number in range(5)))
    with pytest.raises(ValueError, match="one of them > 0"):
        Weights(*(-1.0 if number == place else 1.0 for number in range(5)))


def test_the_reference_is_asked_of_do_nothing_samples_alone() -> None:
    x0 = torch.randn(3, 2, 4, 4, requires_grad=True)
    reference = torch.randn(3, 2, 4, 4, requires_grad=True)
    loss = reference_loss(x0, reference, torch.tensor([True, False, True]))
    expected = (x0 - reference).square().mean(dim=(1, 2, 3)).detach()
    torch.testing.assert_close(loss.detach(), expected * torch.tensor([1.0, 0.0, 1.0]))
    loss.sum().backward()
    assert x0.grad is not None
    assert reference.grad is None
    assert (x0.grad[1] == 0).all()
    assert (x0.grad[[0, 2]] != 0).all()
    assert reference_loss(x0, x0.detach(), torch.ones(3, dtype=torch.bool)).sum() == 0


def test_what_is_kept_by_halves_counts_by_halves() -> None:
    x0, reference = torch.randn(2, 2, 3, 4, 4)
    x0.requires_grad_()
    kept = torch.zeros(2, 1, 4, 4)
    kept[0, 0, :2] = 1.0
    kept[1, 0, 0, 0] = 0.5
    preservation_loss(x0, reference, kept).sum().backward()
    assert x0.grad is not None
    torch.testing.assert_close(x0.grad, kept * 2 * (x0 - reference).detach() / (3 * 4 * 4))


def test_places_are_kept_where_the_teacher_is_of_one_mind() -> None:
    reference, noise = torch.randn(2, 1, 3, 4, 4)
    t = torch.tensor([0.5])
    shift = torch.zeros_like(reference)
    shift[..., 0] = 2.0  # half of it, at t = 0.5, in the clean estimate
    shift[..., 1] = 0.2
    kept, goal = first_sight(reference, lambda x, t: x + shift, lambda x, t: x, t, noise, 0.1)
    expected = torch.exp(-torch.tensor([100.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(kept, expected.expand(1, 1, 4, 4))
    x = 0.5 * (reference + noise)
    torch.testing.assert_close(goal, kept * reference + (1 - kept) * (x - 0.5 * (x + shift)))


def test_an_edit_counts_by_its_mean_over_channels_whatever_its_sign() -> None:
    reference, noise = torch.randn(2, 1, 3, 4, 4)
    shift = torch.tensor([0.6, -0.6, 0.0])[None, :, None, None]  # half of it, at t = 0.5, in the clean estimate
    kept, _ = first_sight(reference, lambda x, t: x + shift, lambda x, t: x, torch.tensor([0.5]), noise, 0.1)
    torch.testing.assert_close(kept, torch.full((1, 1, 4, 4), math.exp(-4.0)), rtol=1e-3, atol=0)


def test_everything_is_kept_exactly_where_both_captions_are_one() -> None:
    reference, noise = torch.randn(2, 2, 3, 4, 4)
    kept, goal = first_sight(reference, wave, wave, torch.tensor([0.3, 0.9]), noise, 0.15)
    assert (kept == 1).all()
    assert torch.equal(goal, reference)


def test_a_hole_is_where_less_than_half_is_kept() -> None:
    reference, blank = torch.randn(2, 2, 3, 1, 4)
    kept = torch.tensor([0.0, 0.499, 0.5, 1.0]).expand(2, 1, 1, 4)
    seen = without_edit(reference, blank, kept)
    assert torch.equal(seen[..., :2], blank[..., :2])
    assert torch.equal(seen[..., 2:], reference[..., 2:])


def test_do_nothing_samples_are_found() -> None:
    mask = does_nothing(batch(("recolour", "nothing"), ("a red square", "a dog"), ("a blue square", "a dog")))
    assert mask.tolist() == [False, True]


def test_do_nothing_with_another_caption_is_a_contradiction() -> None:
    with pytest.raises(DataError, match=r"'do it' has category 'nothing'.*make the two equal"):
        does_nothing(batch(("nothing",), ("a red square",), ("a blue square",)))
