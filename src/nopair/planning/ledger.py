"""Counts the bytes of the tensors that are alive, by owner, and the operations that are done, by part."""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

_aten: Any = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ATTENTION: Final[dict[Any, Any]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Formulas, from shapes, that torch's own table lacks, which has only the kernels of GPUs (a `custom_mapping` of its
`FlopCounterMode`)."""

_FLOPS: Final[dict[Any, Any]] = {**flop_registry, **{kind: shape_wrapper(count) for kind, count in ATTENTION.items()}}

TEMPORARY: Final = "temporaries"
"""Owner of what was made under no name: losses, and what a backward pass needs for a moment."""


@dataclass(slots=True)
class Stage:
    """One stretch of a run: bytes by owner at the moment when most were alive, and operations by part.

    `peak_bytes` is what was alive at that moment, without what is `aside`.
    """

    peak: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = -1
    flops: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Ledger(TorchDispatchMode):
    """Counts under `with`. What was there before is told to `own`.

    What belongs to `aside` has no say in which moment of a stage is the worst: an optimiser's state, which is made in
    the first step and there in all others.

    A tensor belongs to the name (`owner`) under which it was made, until `own` says otherwise. Tensors that share
    memory count once, and only those on `device` count.
    """

    def __init__(self, device: str, aside: str | None = None) -> None:
        super().__init__()
        self._aside = aside
        self.stages: dict[str, Stage] = {}
        self._device = device
        self._stage = Stage()
        self._owner = TEMPORARY
        self._bytes: dict[str, int] = defaultdict(int)
        self._total = 0
        self._paused = False
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def stage(self, name: str) -> None:
        """From here on, peaks and operations count for the stage of this name."""
        self._note()
        self._stage = self.stages.setdefault(name, Stage())
        self._note()

    @contextmanager
    def owner(self, name: str) -> Iterator[None]:
        """Inside, what is made belongs to `name`, and operations count as its."""
        former, self._owner = self._owner, name
        try:
            yield
        finally:
            self._owner = former

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing counts."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def own(self, tensors: Iterable[Tensor], name: str) -> None:
        """Say whose these tensors are from now on."""
        for tensor in tensors:
            self._enter(tensor, name)
        self._note()

    def bytes_of(self, name: str) -> int:
        """Bytes of an owner that are alive now."""
        return self._bytes[name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._paused:
            return out
        formula = _FLOPS.get(func.overloadpacket)
        if formula is not None:
            self._stage.flops[self._owner] += formula(*args, **kwargs, out_val=out)
        for value in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(value, Tensor):
                self._enter(value, None)
        self._note()
        return out

    def _enter(self, tensor: Tensor, name: str | None) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata  # pyright: ignore[reportPrivateUsage] (the meta device has no addresses)
        known = self._known.get(key)
        if known is not None:
            reference, owner, size = known
            if name is not None and name != owner:
                self._bytes[owner] -= size
                self._bytes[name] += size
                self._known[key] = (reference, name, size)
            return
        size, owner = storage.nbytes(), name or self._owner
        self._known[key] = (weakref.ref(storage, lambda _: self._leave(key)), owner, size)
        self._bytes[owner] += size
        self._total += size

    def _leave(self, key: int) -> None:
        _, owner, size = self._known.pop(key)
        self._bytes[owner] -= size
        self._total -= size

    def _note(self) -> None:
        counted = self._total - (0 if self._aside is None else self._bytes[self._aside])
        if counted > self._stage.peak_bytes:
            self._stage.peak_bytes = counted
            self._stage.peak = {name: size for name, size in self._bytes.items() if size}
