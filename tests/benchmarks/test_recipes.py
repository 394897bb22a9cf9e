"""The table of recipes: what an edit costs, against the shipped editor's."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nopair.editor import Editor
from nopair.planning.ledger import ATTENTION
from nopair.planning.records import INSTRUCTION_WORDS
from nopair.planning.words import words


def test_an_edit_costs_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    recipes = importlib.import_module("recipes")
    editor = Editor.load("tiny:editor")
    weights, peak, flops = recipes.edit_cost("tiny:base", 64, 64, editor.settings.steps)
    modules = [value for value in vars(editor.backbone).values() if isinstance(value, nn.Module)]
    stored = sum(one.numel() for module in modules for one in (*module.parameters(), *module.buffers()))
    assert weights == pytest.approx(2 * stored, rel=0.01)
    assert weights < peak < 2 * weights
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        editor.edit(torch.rand(1, 3, 64, 64), [words(INSTRUCTION_WORDS)], [0])
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)
