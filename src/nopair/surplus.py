"""Weights in a checkpoint that the model, as its config describes it, has no layers for."""

from collections.abc import Collection
from itertools import pairwise

from torch import nn


def surplus_layers(model: nn.Module, unexpected: Collection[str]) -> list[str]:
    """Those of `unexpected`, names of weights that a library left out, that are layers beyond the config's count.

    Published folders of language models may hold what a class has no use for, such as an output matrix or another
    tower, so a name counts only if the model has a list of layers of that name, shorter than the weight's number, and
    if the weight of the same name in layer 0 was not left out as well.
    """
    lengths: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            last = name.rpartition(".")[2]
            lengths[last] = min(len(module), lengths.get(last, len(module)))
    return sorted(key for key in unexpected if _is_beyond(key.split("."), lengths, unexpected))


def _is_beyond(parts: list[str], lengths: dict[str, int], unexpected: Collection[str]) -> bool:
    return any(
        number.isdecimal()
        and layers in lengths
        and int(number) >= lengths[layers]
        and ".".join([*parts[:place], "0", *parts[place + 1 :]]) not in unexpected
        for place, (layers, number) in enumerate(pairwise(parts), start=1)
    )
