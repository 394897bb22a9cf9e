"""Words are found in patches."""

import random

import pytest
import torch

from nopair.tiny.base import new_transformer
from nopair.tiny.grounding import NO_WORD, Grounding, finding_loss
from nopair.tiny.sights import NONE, word_id
from nopair.tiny.words import train_tokenizer
from nopair.world.edits import random_scene
from nopair.world.scenes import PATTERNS, SHAPES, caption


def test_targets_are_the_places_of_the_words() -> None:
    tokenizer = train_tokenizer(0)
    grounding = Grounding(new_transformer(), tokenizer)
    scenes = [random_scene(random.Random(seed), least=1) for seed in range(6)]
    ids = torch.tensor(tokenizer([caption(scene) for scene in scenes], padding=True)["input_ids"])
    targets = grounding.targets(scenes, ids)
    shapes, patterns = ({word_id(tokenizer, word): word for word in words} for words in (SHAPES, PATTERNS))
    for i, scene in enumerate(scenes):
        named = [int(ids[i, place]) for place in targets[i].tolist() if place != NO_WORD]
        assert {shapes[token] for token in named if token in shapes} == {thing.shape for thing in scene.things}
        assert {patterns[token] for token in named if token in patterns} == {scene.background.pattern}
        assert len(named) == 64


def test_a_word_that_is_not_there_is_no_target() -> None:
    tokenizer = train_tokenizer(0)
    scene = random_scene(random.Random(1), least=1)
    empty = torch.full((1, 4), tokenizer.pad_token_id)
    assert (Grounding(new_transformer(), tokenizer).targets([scene], empty) == NO_WORD).all()


def test_patches_that_equal_their_words_cost_nothing() -> None:
    texts = torch.eye(8).unsqueeze(0)
    targets = torch.tensor([[3, 0, NONE, 5]])
    patches = 7.0 * texts[0, targets.clamp(min=0)]
    weights = torch.ones(1, 4)
    assert finding_loss(patches, texts, targets, [8], weights) < 1e-3
    assert finding_loss(patches.roll(1, 1), texts, targets, [8], weights) > 5
    assert finding_loss(patches, texts, torch.full((1, 4), NONE), [8], weights) == 0


def test_a_patch_without_a_word_is_to_be_like_no_word() -> None:
    texts, weights = torch.eye(8).unsqueeze(0), torch.ones(1, 2)
    nowhere = torch.full((1, 2), NO_WORD)
    like_one, like_none = texts[:, :2], -texts[:, :2]
    assert finding_loss(like_none, texts, nowhere, [8], weights) < 0.01
    assert finding_loss(like_one, texts, nowhere, [8], weights) > 5
    # Padding is no word: what is like it, is like none.
    assert finding_loss(texts[:, 6:], texts, nowhere, [6], weights) < 0.01


def test_padding_is_not_searched() -> None:
    texts, patches = torch.randn(1, 8, 4), torch.randn(1, 3, 4)
    targets, weights = torch.tensor([[0, 1, 1]]), torch.ones(1, 3)
    loss = finding_loss(patches, texts, targets, [5], weights)
    other = torch.cat([texts[:, :5], torch.randn(1, 3, 4)], dim=1)
    torch.testing.assert_close(finding_loss(patches, other, targets, [5], weights), loss, rtol=0, atol=0)


@pytest.mark.parametrize("omni", [False, True])
def test_the_loss_looks_at_patches_and_words_in_either_order(omni: bool) -> None:
    """Its gradient must reach both, and the pixels of a patch that counts."""
    torch.manual_seed(0)
    tokenizer, transformer = train_tokenizer(0), new_transformer()
    grounding = Grounding(transformer, tokenizer)
    latent = torch.randn(4, 1, 16, 16, requires_grad=True)
    feature = torch.randn(9, 128, requires_grad=True)
    t = torch.tensor([0.3])
    if omni:
        transformer([[latent]], 1 - t, [[feature]], siglip_feats=[None], image_noise_mask=[[1]], return_dict=False)
    else:
        transformer([latent], 1 - t, [feature], return_dict=False)
    targets = torch.full((1, 64), NONE)
    targets[0, 5] = 2
    grounding.loss(targets, [9], t, text_first=omni).backward()
    assert latent.grad is not None
    assert latent.grad[:, 0, 0:2, 10:12].abs().sum() > 0, "patch 5 is in row 0, column 5"
    assert feature.grad is not None
    assert feature.grad.abs().sum() > 0


def test_with_a_reference_its_patches_are_compared_too() -> None:
    """The gradient of a patch that counts must reach the reference's own latents, at the place of the patch."""
    torch.manual_seed(0)
    tokenizer, transformer = train_tokenizer(0), new_transformer()
    grounding = Grounding(transformer, tokenizer)
    reference, latent = torch.randn(4, 1, 16, 16, requires_grad=True), torch.randn(4, 1, 16, 16)
    feature = torch.randn(9, 128)
    t = torch.tensor([1.0])  # at pure noise only the reference counts
    transformer(
        [[reference, latent]],
        1 - t,
        [[feature[:0], feature]],
        siglip_feats=[None],
        image_noise_mask=[[0, 1]],
        return_dict=False,
    )
    targets = torch.full((1, 64), NONE)
    targets[0, 5] = 2
    loss = grounding.loss_with_reference(targets, [9], t)
    loss.backward()
    assert reference.grad is not None
    own = reference.grad[:, 0, 0:2, 10:12].abs().mean()
    assert own > 3 * reference.grad.abs().mean()
