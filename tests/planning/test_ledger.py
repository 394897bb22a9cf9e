"""Counting bytes and operations."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nopair.planning.ledger import ATTENTION, TEMPORARY, Ledger


def test_bytes_are_counted_while_they_live_and_for_whom() -> None:
    ledger = Ledger("cpu")
    weight = torch.ones(10)
    ledger.own([weight, weight[2:]], "weights")
    with ledger:
        ledger.stage("first")
        with ledger.owner("part"):
            kept = torch.zeros(100)
        lost = torch.zeros(50)
        del lost
        ledger.stage("second")
        view = kept[3:].view(97, 1)
        other = torch.zeros(20)
    first, second = ledger.stages["first"], ledger.stages["second"]
    assert first.peak == {"weights": 40, "part": 400, TEMPORARY: 200}
    assert second.peak == {"weights": 40, "part": 400, TEMPORARY: 80}
    assert (first.peak_bytes, second.peak_bytes) == (640, 520)
    ledger.own([view, other], "mine")
    assert (ledger.bytes_of("mine"), ledger.bytes_of("part"), ledger.bytes_of(TEMPORARY)) == (480, 0, 0)
    del kept, view
    assert ledger.bytes_of("mine") == 80


def test_nothing_counts_in_a_pause_or_elsewhere() -> None:
    ledger = Ledger("meta")
    with ledger:
        ledger.stage("all")
        with ledger.paused():
            kept = torch.empty(100, 100, device="meta") @ torch.empty(100, 3, device="meta")
        here = torch.ones(50)
    assert ledger.stages["all"].peak_bytes == 0
    assert not ledger.stages["all"].flops
    ledger.own([kept], "kept")
    assert ledger.bytes_of("kept") == 1200
    del here


def test_operations_are_those_of_torchs_own_counter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    images = torch.rand(2, 3, 8, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.rand(2, 5, 8)

    def work() -> None:
        (model(images).sum() + attention(tokens, tokens, tokens, need_weights=False)[0].sum()).backward()

    ledger = Ledger("cpu")
    with ledger:
        ledger.stage("all")
        work()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work()
    assert sum(ledger.stages["all"].flops.values()) == counter.get_total_flops() > 0


@pytest.mark.parametrize("fail", [False, True])
def test_an_owner_ends_with_its_block(fail: bool) -> None:
    ledger = Ledger("cpu")
    with ledger:
        ledger.stage("all")
        try:
            with ledger.owner("a"):
                if fail:
                    raise ValueError
        except ValueError:
            pass
        kept = torch.ones(1)
    assert ledger.bytes_of(TEMPORARY) == kept.nbytes


def test_what_is_aside_does_not_decide_which_moment_is_the_worst() -> None:
    ledger = Ledger("cpu", aside="state")
    with ledger:
        ledger.stage("all")
        work = torch.zeros(100)
        del work
        with ledger.owner("state"):
            state = torch.zeros(1000)
    assert ledger.stages["all"].peak == {TEMPORARY: 400}
    assert ledger.stages["all"].peak_bytes == 400
    assert ledger.bytes_of("state") == state.nbytes
