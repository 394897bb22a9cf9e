"""A second device on a machine that has none: its tensors compute as ever, and meet the CPU's only where they may.

`FAR` is the device to name. Inside `far_device()`, tensors that are made or moved there are `Far`: they say that they
are on `FAR`, hold their numbers on the CPU, and an operation that mixes them with the CPU's fails, as it would with a
GPU. Exempt are, as there, copies, single numbers and indices.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta", 1)
"""Of a type that every torch can handle; libraries use the one without a number, which stays what it is."""

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._unsafe_index.Tensor,
}

_PLAIN = {torch.ops.aten._conj.default: torch.ops.aten._conj_physical.default}
"""The lazy conjugate is a mark on a tensor that `Far` would lose."""


class MixedDevices(AssertionError):
    """An operation that a GPU would have refused."""


class Far(Tensor):
    """A tensor on `FAR`; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        far.near = near
        return far

    def tolist(self) -> Any:
        """torch has it for its own class only."""
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Data(TorchFunctionMode):
    """Tensors of given numbers: torch drops the numbers where the device is meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == FAR:
            return func(*tree_map(_near, args), **{**kwargs, "device": "cpu"}).to(FAR)
        if func is Tensor.new_tensor and isinstance(args[0], Far):
            return func(args[0].near, *args[1:], **kwargs).to(FAR)
        if func is Tensor.__getitem__ and isinstance(args[0], Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(part) if isinstance(part, list) else part for part in index))
        return func(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[torch.device]:
    """Inside, `FAR` can be used."""
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Data(), _Mode():
            yield FAR
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def _call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_far = [isinstance(leaf, Far) for leaf in leaves]
    asked = kwargs.get("device")
    if asked is not None:
        wrap = torch.device(asked) == FAR
        kwargs = {**kwargs, "device": torch.device("cpu") if wrap else asked}
    elif func is torch.ops.aten.copy_.default:
        wrap = isinstance(args[0], Far)
    else:
        wrap = any(is_far)
        free = (
            [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and not leaf.is_meta]
            if func in _INDEXED
            else []
        )
        checked = [leaf for leaf in leaves if not any(leaf is one for one in free)]
        if wrap and func not in _COPIES:
            for leaf in checked:
                if not isinstance(leaf, Far) and (leaf.ndim or leaf.is_meta):
                    raise MixedDevices(f"{func} mixes {FAR} with {leaf.device}: a tensor of shape {tuple(leaf.shape)}")
    func = _PLAIN.get(func, func)
    out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    known = {id(leaf.near): leaf for leaf in leaves if isinstance(leaf, Far)}

    def result(value: Any) -> Any:
        if not isinstance(value, Tensor) or not wrap:
            return value
        return known[id(value)] if id(value) in known else Far(value)

    return tree_map(result, out)


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value
