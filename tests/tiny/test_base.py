"""Pretraining of the tiny base draws from words alone and from words with a reference."""

import random

import torch

from nopair.backbones.zimage import PROMPT_BLOCK
from nopair.tiny.base import BasePhase, BaseSettings
from nopair.tiny.vae import new_vae
from nopair.tiny.words import train_tokenizer


def test_both_tasks_train_the_transformer_and_the_text_encoder() -> None:
    phase = BasePhase(new_vae(), train_tokenizer(0), BaseSettings(steps=8, batch=2))
    seen: set[str] = set()
    for index in (4, 5):
        before = {name: value.clone() for name, value in phase.models.state_dict().items()}
        metrics = phase.step(index)
        task = {"drawing", "restoring"} & metrics.keys()
        assert len(task) == 1
        seen |= task
        after = phase.models.state_dict()
        assert {name.split(".")[0] for name in after if (after[name] != before[name]).any()} == set(phase.models)
    assert seen == {"drawing", "restoring"}


def test_a_step_is_a_function_of_its_index() -> None:
    results = []
    for noise in range(2):
        torch.manual_seed(0)
        phase = BasePhase(new_vae(), train_tokenizer(0), BaseSettings(steps=8, batch=2))
        torch.manual_seed(noise)  # nothing may come from the global generator
        results.append([phase.step(index)["text_loss"] for index in (4, 5)])
    assert results[0] == results[1]


def test_every_prompt_fits_one_block() -> None:
    phase = BasePhase(new_vae(), train_tokenizer(0), BaseSettings(steps=8, batch=48))
    rng = random.Random(0)
    prompts = phase._restorations(rng).prompts + phase._drawings(rng).prompts
    assert all(phase._fits(prompt) for prompt in prompts)
    assert "" in prompts
    assert not phase._fits("red circle " * PROMPT_BLOCK)
