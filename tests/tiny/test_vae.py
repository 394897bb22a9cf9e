"""The autoencoder's second phase: the decoder learns, the meaning of latents stays."""

import copy

import torch

from nopair.tiny.vae import DecoderPhase, VaeSettings, new_vae
from nopair.training.phase import Phase

SETTINGS = VaeSettings(batch=2, decoder_steps=3)


def run(phase: DecoderPhase, indices: range) -> None:
    for index in indices:
        phase.step(index)


def test_the_encoder_stays_and_the_decoder_ends_as_its_average() -> None:
    torch.manual_seed(0)
    vae = new_vae()
    before = copy.deepcopy(vae.state_dict())
    phase = DecoderPhase(vae, SETTINGS)
    assert isinstance(phase, Phase)
    run(phase, range(3))
    after = vae.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith("encoder"))
    average = phase.average.weights()
    assert all(torch.equal(value, after[f"decoder.{name}"]) for name, value in average.items())
    assert any(not torch.equal(value, before[f"decoder.{name}"]) for name, value in average.items())


def test_a_resumed_run_is_an_uninterrupted_one() -> None:
    torch.manual_seed(0)
    first, second = new_vae(), new_vae()
    whole = DecoderPhase(first, SETTINGS)
    run(whole, range(2))
    resumed = DecoderPhase(second, SETTINGS)
    resumed.load_state(copy.deepcopy(whole.state()))
    run(whole, range(2, 3))
    run(resumed, range(2, 3))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
