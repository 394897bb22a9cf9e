"""Pretraining goes on from a checkpoint as if it had never stopped, on whichever device."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._pytree import tree_map

from nopair.tiny.base import BasePhase, BaseSettings
from nopair.tiny.judge import JudgePhase, JudgeSettings
from nopair.tiny.vae import new_vae
from nopair.tiny.words import IMAGE, VIDEO, train_tokenizer

STEPS, STOPPED = 4, 2


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return new_vae()


def base() -> BasePhase:
    return BasePhase(vae(), train_tokenizer(0), BaseSettings(steps=STEPS, batch=2))


def judge() -> JudgePhase:
    settings = JudgeSettings(steps=STEPS, batch=2, look=1, look_batch=2)
    return JudgePhase(vae(), train_tokenizer(0, (IMAGE, VIDEO)), settings, width=32)


def saved(phase: BasePhase | JudgePhase) -> dict[str, Any]:
    """The state as a checkpoint gives it back: copies on the CPU."""
    return tree_map(lambda value: value.detach().cpu().clone() if isinstance(value, Tensor) else value, phase.state())


@pytest.mark.parametrize("make", [base, judge])
def test_a_resumed_run_is_an_uninterrupted_one(make: Callable[[], BasePhase | JudgePhase]) -> None:
    whole, resumed = make(), make()
    for index in range(STOPPED):
        whole.step(index)
    resumed.load_state(saved(whole))
    for index in range(STOPPED, STEPS):
        assert whole.step(index) == resumed.step(index)
    for phase in (whole, resumed):
        phase.finish()
    left, right = whole.models.state_dict(), resumed.models.state_dict()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # true of meta tensors, not of these
@pytest.mark.parametrize("make", [base, judge])
def test_a_run_goes_on_where_its_models_are(
    make: Callable[[], BasePhase | JudgePhase],
    sibling: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint comes in on the CPU; the device refuses to be mixed with it."""
    with sibling("training/far.py").far_device() as device:
        for module in ("base", "judge"):
            monkeypatch.setattr(f"nopair.tiny.{module}.choose_device", lambda _: device)
        phase = make()
        phase.step(0)
        phase.load_state(saved(phase))
        phase.step(1)
