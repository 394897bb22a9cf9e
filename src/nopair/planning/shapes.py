"""Running real code without memory: tensors that have a shape and no values.

Under `ShapesOnly`, floating-point tensors on torch's meta device go through any code. What steers a computation (token
ids, masks, positions: whatever is no floating-point number) stays on the CPU, with its values, even where the code puts
it on the device of its floating-point neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

META: Final = torch.device("meta")
UNKNOWN: Final = 1.0
"""What a number that nobody knows is read as: a loss or a gradient norm that is finite and small."""

_aten: Any = torch.ops.aten


class ShapesOnly:
    """A context in which floating-point tensors on the meta device are enough for a training step, backward included.

    A value that is read where there is none is `UNKNOWN`. Attention is counted as a fused kernel would run it, without
    a matrix of scores.
    """

    def __init__(self) -> None:
        self._entered = ExitStack()

    def __enter__(self) -> None:
        for context in (_Values(), Constants(), _fused_attention()):
            self._entered.enter_context(context)

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


class Constants(TorchFunctionMode):
    """Catches what torch does before any dispatch mode sees it; torch itself leaves it in a backward pass."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and _is_meta(kwargs.get("device")):
            known = torch.tensor(*args, **{**kwargs, "device": "cpu"})
            return known if _steers(known.dtype) else known.to(META)
        return func(*args, **kwargs)


class _Values(TorchDispatchMode):
    """Keeps known values apart from unknown ones, and brings them together where they meet."""

    def __init__(self) -> None:
        super().__init__()
        self._shapes = _Shapes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self._shapes.of(func, args, kwargs or {}, lambda: self._compute(func, args, dict(kwargs or {})))

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return bool(UNKNOWN) if args[0].dtype == torch.bool else UNKNOWN
        if _is_meta(kwargs.get("device")):
            dtype = kwargs.get("dtype") or _dtype_of(func, args)
            if dtype is not None and _steers(dtype):
                kwargs["device"] = torch.device("cpu")
        elif func is _aten._to_copy.default and args[0].is_meta and kwargs.get("device") is not None:
            return torch.full(args[0].shape, UNKNOWN, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is _aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)])
        if _devices(args) | _devices(kwargs.values()) == {True, False}:
            # A copy on the other device, which no one sees, of what is known.
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        return func(*args, **kwargs)


class _Shapes:
    """Remembers what shapes an operation gives for what shapes: working that out takes far longer."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._is_pure: dict[Any, bool] = {}

    def of(self, func: Any, args: Any, kwargs: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The outcome of an operation; `compute` is asked once for each set of shapes, always for views and such."""
        pure = self._is_pure.get(func)
        if pure is None:
            pure = self._is_pure[func] = _is_pure(func)
        if not pure:
            return compute()
        try:
            key = (func, *map(_described, args), *((name, _described(value)) for name, value in kwargs.items()))
            known = self._known.get(key)
            if known is None:
                out = compute()
                self._known[key] = _described(out)
                return out
        except _ValuesMatterError:
            return compute()
        return _made(known)


class _ValuesMatterError(Exception):
    """An operation has a tensor with values among its arguments."""


def _is_pure(func: Any) -> bool:
    """Whether an operation makes new tensors out of tensors, and only that."""
    schema = func._schema
    if any(one.alias_info is not None for one in (*schema.arguments, *schema.returns)):
        return False
    return any("Tensor" in str(one.type) for one in schema.arguments) and all(
        str(one.type) in ("Tensor", "List[Tensor]") for one in schema.returns
    )


def _described(value: Any) -> Any:
    """What of an argument decides about shapes, hashable."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _ValuesMatterError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_described, value)
    return type(value), value


def _made(described: Any) -> Any:
    """New tensors of a description."""
    if described[0] in (list, tuple):
        return described[0](_made(part) for part in described[1:])
    if described[0] is type(None):
        return None
    size, stride, dtype = described
    return torch.empty_strided(size, stride, dtype=dtype, device=META)


def _devices(values: Iterable[Any]) -> set[bool]:
    """Of each tensor among an operation's arguments, whether it is on the meta device."""
    found: set[bool] = set()
    for value in values:
        if isinstance(value, Tensor):
            found.add(value.is_meta)
        elif isinstance(value, list | tuple):
            found |= _devices(value)
    return found


def _steers(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _dtype_of(func: Any, args: Any) -> torch.dtype | None:
    """The dtype of what a factory or a copy makes, where it is not said: its tensor's, or that of its numbers."""
    if func.overloadpacket is _aten.arange:
        whole = all(isinstance(bound, int) for bound in args)
        return torch.int64 if whole else torch.get_default_dtype()
    if func is _aten.full.default:
        return torch.bool if isinstance(args[1], bool) else torch.int64 if isinstance(args[1], int) else None
    return args[0].dtype if args and isinstance(args[0], Tensor) else None


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A known mask as the places where it is true, so that the shape of what it picks is known."""
    if index is not None and index.dtype == torch.bool and not index.is_meta:
        return list(index.nonzero().unbind(1))
    return [index]


def _to_meta(value: Tensor) -> Tensor:
    return value if value.is_meta else torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=META)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Inside, the library's name for attention stands for `_fused` where tensors have no values.

    A mode would not do: torch switches modes off for a backward pass, which may recompute.
    """
    original = functional.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_fused if query.is_meta else original)(query, *args, **kwargs)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, which on the meta device would make a matrix of scores, as no GPU does."""
    if enable_gqa:
        shares = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shares, dim=1), value.repeat_interleave(shares, dim=1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # The library turns a mask into numbers to add, for each call anew.
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=META)
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
