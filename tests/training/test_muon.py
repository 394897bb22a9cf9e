"""Muon: torch's own as the measure, to the rounding of its bfloat16."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nopair.training.muon import Muon, orthogonal

SHAPES = [(6, 6), (12, 5), (5, 12), (6, 6), (1, 4), (5, 12)]


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def test_it_is_torchs_muon_without_the_rounding() -> None:
    ours, theirs = matrices(), matrices()
    optimisers = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    start = [parameter.detach().clone() for parameter in ours]
    for step in range(4):
        for parameters, optimiser in zip((ours, theirs), optimisers, strict=True):
            torch.manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimiser.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (mine - before).norm()
        assert moved > 0.01
        assert (mine - other).norm() < 0.02 * moved


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_singular_vectors_stay_and_values_come_near_one(rows: int, columns: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    given = torch.randn(count, rows, columns)
    made = orthogonal(given)
    assert made.shape == given.shape
    alone = torch.stack([orthogonal(matrix[None])[0] for matrix in given])
    torch.testing.assert_close(made, alone, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_norm(made, 2).max() < 1.3
    # U S V' becomes U f(S) V', so made' given is symmetric and positive.
    product = made.mT @ given
    torch.testing.assert_close(product, product.mT, atol=1e-3, rtol=1e-3)


def test_large_singular_values_become_one_and_zero_stays_zero() -> None:
    made = orthogonal(torch.stack([torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.zeros(3, 3)]))
    assert ((made[0].diagonal() > 0.6) & (made[0].diagonal() < 1.3)).all()
    assert torch.equal(made[1], torch.zeros(3, 3))


def test_what_has_no_gradient_stays_and_what_is_no_matrix_is_refused() -> None:
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moving.grad = torch.eye(2)
    Muon([still, moving], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1, weight_decay=0.0)
