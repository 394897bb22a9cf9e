"""Real code on tensors without values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from nopair.planning.ledger import Ledger
from nopair.planning.shapes import META, UNKNOWN, ShapesOnly


def test_what_steers_keeps_its_values_where_floats_have_none() -> None:
    with ShapesOnly():
        ids = torch.tensor([[2, 0, 1]], device=META)
        mask = torch.ones(2, 3, dtype=torch.bool, device=META)
        places = torch.arange(3, device=META)
        grids = torch.tensor([1, 4, 6]).to(META)
        assert (ids.tolist(), bool(mask.all()), places.tolist(), grids.tolist()) == (
            [[2, 0, 1]],
            True,
            [0, 1, 2],
            [1, 4, 6],
        )
        assert torch.zeros(2, device=META).is_meta
        assert torch.tensor([0.5], device=META).is_meta


def test_known_and_unknown_meet() -> None:
    table = torch.empty(5, 4, device=META)
    with ShapesOnly():
        ids = torch.tensor([[2, 0, 1], [1, 1, 4]])
        rows = functional.embedding(ids, table)
        assert (rows.shape, rows.is_meta) == ((2, 3, 4), True)
        picked = rows[ids == 1]
        assert (picked.shape, picked.is_meta) == ((3, 4), True)
        assert (rows * torch.ones(3, 1)).is_meta


def test_a_value_that_nobody_knows_reads_as_a_small_finite_number() -> None:
    with ShapesOnly():
        loss = torch.empty((), device=META)
        assert loss.item() == UNKNOWN
        assert torch.empty(2, device=META).tolist() == [UNKNOWN, UNKNOWN]
        assert torch.empty(2, device=META).cpu().device.type == "cpu"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_attention_makes_no_matrix_of_scores(masked: bool, grouped: bool) -> None:
    tokens = 512
    ledger = Ledger("meta")
    query = torch.empty(1, 4, tokens, 8, device=META, requires_grad=True)
    key = torch.empty(1, 2 if grouped else 4, tokens, 8, device=META, requires_grad=True)
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool) if masked else None
    with ShapesOnly(), ledger:
        ledger.stage("all")
        out = functional.scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=grouped)
        out.sum().backward()
    assert out.shape == query.shape
    assert query.grad is not None
    assert key.grad is not None
    assert key.grad.shape == key.shape
    scores = 4 * tokens * tokens * 4
    assert ledger.stages["all"].peak_bytes < (0.5 + 0.25 * masked) * scores
    assert sum(ledger.stages["all"].flops.values()) == 7 * 2 * 4 * tokens * tokens * 8


def test_a_training_step_runs_and_leaves_the_modes_behind() -> None:
    with META:
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    optimiser = torch.optim.AdamW(model.parameters())
    with ShapesOnly():
        model(torch.empty(3, 4, device=META)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert len(optimiser.state_dict()["state"]) == 4
    with pytest.raises(RuntimeError):
        torch.empty((), device=META).item()


OPERATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum of a transposed tensor": lambda x: x.t() + 1,
    "product": lambda x: x @ x.t(),
    "other dtype": lambda x: x.to(torch.bfloat16) * 2,
    "mean over a dimension": lambda x: x.mean(0, keepdim=True),
    "several results": lambda x: torch.max(x, dim=1),
    "list of results": lambda x: torch.cat([x, x], 1).split(3, 1),
    "group normalisation": lambda x: functional.layer_norm(x, x.shape[1:]),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_shapes_that_are_remembered_are_those_of_real_tensors(operation: Callable[[torch.Tensor], Any]) -> None:
    with ShapesOnly():
        for rows in (4, 4, 5, 4):  # looked up at the second and at the last
            real = tree_leaves(operation(torch.rand(rows, 6)))
            found = tree_leaves(operation(torch.empty(rows, 6, device=META)))
            assert [(one.shape, one.stride(), one.dtype) for one in found] == [
                (one.shape, one.stride(), one.dtype) for one in real
            ]
