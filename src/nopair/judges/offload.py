"""A judge whose weights are on the device only while it is asked, and in host memory for the rest of a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nopair.judges.base import VocabularyJudge
from nopair.types import Question

Here = Callable[[], AbstractContextManager[None]]
"""Brings a judge's weights to the device while its context lasts."""


@final
class HostWeights:
    """The parameters of a frozen module, kept in host memory.

    Outside `here`, a parameter is an empty tensor on the device, so that using it is an error and never a slow call.
    """

    def __init__(self, module: nn.Module, device: torch.device | str) -> None:
        """Takes `module`'s parameters out of it. Its buffers stay where they are.

        Raises:
            ValueError: a parameter is trained: what is learnt on the device would be lost.
        """
        self._device = torch.device(device)
        self._is_here = False
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}  # a tied parameter has several
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
                places.setdefault(parameter, []).append((owner, name))
        if any(parameter.requires_grad for parameter in places):
            raise ValueError("only frozen weights can be kept in host memory")
        self._homes = [(_home(parameter.data), where) for parameter, where in places.items()]
        self._leave()

    def _leave(self) -> None:
        for home, where in self._homes:
            _put(torch.empty(0, dtype=home.dtype, device=self._device), where)
        self._is_here = False

    @contextmanager
    def here(self) -> Iterator[None]:
        """Inside, the module is whole and on the device. Raises RuntimeError if it is there already."""
        if self._is_here:
            raise RuntimeError("these weights are on the device already; who brought them would lose them")
        self._is_here = True
        try:
            for home, where in self._homes:
                _put(home.to(self._device, copy=True), where)
            yield
        finally:
            self._leave()


def _home(values: Tensor) -> Tensor:
    """In pageable memory: torch rounds what it pins up to powers of two, which would nearly double a large judge."""
    return values if values.is_meta else values.to("cpu")


def _put(values: Tensor, where: Sequence[tuple[nn.Module, str]]) -> None:
    new = nn.Parameter(values, requires_grad=False)
    for owner, name in where:
        setattr(owner, name, new)


@final
class OffloadedJudge:
    """A judge that is whole only while it answers, and again while its gradient is taken; a `VocabularyJudge`.

    Between the two nothing of it is kept, neither weights nor activations: in the backward pass it answers once more.
    """

    def __init__(self, judge: VocabularyJudge, here: Here) -> None:
        self._judge = judge
        self._here = here

    @property
    def answer_tokens(self) -> tuple[int, int]:
        """See `nopair.judges.base.VocabularyJudge`."""
        return self._judge.answer_tokens

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`."""
        return self._answer(lambda seen: self._judge.yes_minus_no(reference, seen, questions), edited)

    def answer_logits(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question vocabulary"]:
        """See `nopair.judges.base.VocabularyJudge`."""
        return self._answer(lambda seen: self._judge.answer_logits(reference, seen, questions), edited)

    def odds(self, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows"]:
        """See `nopair.judges.base.VocabularyJudge`."""
        return self._judge.odds(logits)

    def _answer(self, ask: Callable[[Tensor], Tensor], edited: Tensor) -> Tensor:
        return _Visit.apply(edited, ask, self._here)  # pyright: ignore[reportReturnType] (torch's stub says Any | None)


class _Visit(torch.autograd.Function):
    """`ask(edited)`, forgotten and asked again for its gradient, each time with the weights here.

    torch's checkpointing asks again, too, but would let the weights go before the gradient is taken.
    """

    @staticmethod
    def forward(ctx: Any, edited: Tensor, ask: Callable[[Tensor], Tensor], here: Here) -> Tensor:
        ctx.save_for_backward(edited)
        ctx.ask, ctx.here = ask, here
        with here():
            return ask(edited)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator's types)
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, None, None]:
        (edited,) = ctx.saved_tensors
        with ctx.here(), torch.enable_grad():
            seen = edited.detach().requires_grad_()
            answers = ctx.ask(seen)
            if not answers.requires_grad:  # nothing was asked
                return None, None, None
            (gradient,) = torch.autograd.grad(answers, seen, gradients)
        return gradient, None, None
