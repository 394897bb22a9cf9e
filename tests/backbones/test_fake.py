import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.backbones.base import Backbone
from nopair.backbones.fake import ToyBackbone
from nopair.types import Text

TOY: Backbone = ToyBackbone.build(seed=0)
prompts = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=4)


@given(prompts, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_batch_is_its_samples_and_padding_moves_nothing(
    words: list[str], height: int, width: int, referenced: bool
) -> None:
    text, batch = TOY.encode_text(words), len(words)
    noisy, reference = torch.randn(2, batch, *TOY.latent_shape(height, width))
    t = torch.rand(batch)
    features = torch.cat([text.features, torch.full_like(text.features, torch.nan)], dim=1)
    with torch.no_grad():
        together = TOY.velocity(noisy, t, Text(features, text.lengths), reference if referenced else None)
        for i, prompt in enumerate(words):
            at = slice(i, i + 1)
            alone = TOY.velocity(noisy[at], t[at], TOY.encode_text([prompt]), reference[at] if referenced else None)
            torch.testing.assert_close(together[at], alone, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_a_bag_of_words() -> None:
    text = TOY.encode_text(["Red circle!", "circle, red", "blue circle", ""])
    assert text.lengths == (2, 2, 2, 0)
    assert torch.equal(text.features[0], text.features[1])
    assert not torch.equal(text.features[0], text.features[2])


def test_text_and_weights_are_the_same_in_every_process() -> None:
    probe = (
        "from nopair.backbones.fake import ToyBackbone; toy = ToyBackbone.build(seed=0); import sys;"
        "print(toy.encode_text(['red circle']).features.sum().item());"
        "print(sum(p.sum().item() for p in toy.transformer.parameters()));"
        "assert not {'diffusers', 'transformers', 'peft'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    here = (
        TOY.encode_text(["red circle"]).features.sum().item(),
        sum(p.sum().item() for p in TOY.transformer.parameters()),
    )
    torch.testing.assert_close(torch.tensor(list(map(float, result.stdout.split()))), torch.tensor(here))


def test_pixels_survive_the_round_trip_unclamped() -> None:
    pixels = torch.rand(1, 3, 4, 5) * 3 - 1
    torch.testing.assert_close(TOY.decode_latents(TOY.encode_image(pixels)), pixels)


def test_prompt_time_and_reference_matter() -> None:
    noisy, reference = torch.randn(2, 1, 3, 6, 6)
    t, text = torch.full((1,), 0.5), TOY.encode_text(["red"])
    with torch.no_grad():
        v = TOY.velocity(noisy, t, text, reference)
        for other in (
            TOY.velocity(noisy, t, text),
            TOY.velocity(noisy, t, text, -reference),
            TOY.velocity(noisy, t * 0.5, text, reference),
            TOY.velocity(noisy, t, TOY.encode_text(["blue"]), reference),
        ):
            assert (v - other).abs().max() > 1e-3


def test_it_learns_to_return_the_reference() -> None:
    toy = ToyBackbone.build(seed=0)
    optimizer = torch.optim.Adam(toy.transformer.parameters(), lr=0.02)
    text, losses = toy.encode_text(["same"] * 8), []
    for _ in range(60):
        reference, noise = torch.rand(8, 3, 6, 6) * 2 - 1, torch.randn(8, 3, 6, 6)
        loss = (toy.velocity(noise, torch.ones(8), text, reference) - (noise - reference)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
