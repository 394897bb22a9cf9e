"""What every family does to save memory, and that it changes no result."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nopair.backbones.base import Backbone, StoredBackbone
from nopair.backbones.folder import drop_weights
from nopair.backbones.load import load_backbone
from nopair.backbones.roles import TRAINED, FullRoles, LoraRoles, Role, Roles

FAMILIES = ("zimage", "flux2", "sd3", "qwen_image")
PROMPTS = ["make the circle red", "a blue square on a grey ground"]


every_family = pytest.mark.parametrize("family", FAMILIES)


def lora(backbone: Backbone) -> LoraRoles:
    needed = dict(backbone.adapter_ranks)
    return LoraRoles.of(backbone, 2, 4.0, ("to_q", "to_v", *needed), seed=0, ranks=needed)


def wake(roles: Roles) -> None:
    """Move student and fake away from the base and from each other."""
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for role in TRAINED:
            for parameter in roles.trainable(role).values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=source)


def velocity(backbone: Backbone) -> Tensor:
    """At fixed inputs, with a reference."""
    source = torch.Generator().manual_seed(1)
    noisy, reference = torch.randn(2, 2, *backbone.latent_shape(32, 64), generator=source)
    return backbone.velocity(noisy, torch.tensor([0.3, 0.9]), backbone.encode_text(PROMPTS), reference)


def gradients(roles: Roles, role: Role, between: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
    """Of a loss of `role`; `between` happens between its forward and its backward pass."""
    loss = velocity(roles.student if role == "student" else roles.fake).square().mean()
    between()
    roles.backward(loss, role)
    found = {name: parameter.grad for name, parameter in roles.trainable(role).items()}
    for parameter in roles.trainable(role).values():
        parameter.grad = None
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def kept_bytes(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of `work`, and how much it keeps for its backward pass."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return work(), kept


# --- recomputing ------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("make", [FullRoles.of, lora], ids=["full", "lora"])
def test_every_trained_role_recomputes_and_gets_the_same_gradients(
    make: Callable[[Backbone], Roles], family: str, tiny_bases: Path
) -> None:
    plain, small = load_backbone(tiny_bases / family), load_backbone(tiny_bases / family)
    small.checkpoint()
    expected, found = make(plain), make(small)
    for roles in (expected, found):
        wake(roles)
    for role in TRAINED:
        views = [roles.student if role == "student" else roles.fake for roles in (expected, found)]
        (_, much), (_, little) = (kept_bytes(lambda view=view: velocity(view)) for view in views)
        assert little < 0.5 * much
        # As in training: the other roles are asked between the forward and the backward pass.
        others = (found.fake, found.teacher) if role == "student" else (found.student, found.teacher)
        wanted, got = (
            gradients(expected, role),
            gradients(found, role, between=lambda others=others: [velocity(other) for other in others]),
        )
        assert wanted.keys() == got.keys()
        assert any(gradient.abs().max() > 0 for gradient in wanted.values())
        for name, gradient in wanted.items():
            assert torch.equal(got[name], gradient), name


@every_family
def test_decoding_recomputes_and_gets_the_same_gradient(family: str, tiny_bases: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_bases / family)
    latents = torch.randn(2, *backbone.latent_shape(32, 64), generator=torch.Generator().manual_seed(1))
    states = dict(decoder(backbone).state_dict())

    def decode() -> tuple[Tensor, Tensor, int]:
        given = latents.clone().requires_grad_()
        pixels, kept = kept_bytes(lambda: backbone.decode_latents(given))
        (gradient,) = torch.autograd.grad(pixels.square().mean(), given)
        return pixels.detach(), gradient, kept

    pixels, gradient, much = decode()
    backbone.checkpoint()
    same_pixels, same_gradient, little = decode()
    assert torch.equal(same_pixels, pixels)
    assert torch.equal(same_gradient, gradient)
    assert little < 0.5 * much
    backbone.save(tmp_path)  # what makes it recompute does not leave with it
    loaded = decoder(load_backbone(tmp_path)).state_dict()
    assert loaded.keys() == states.keys()
    assert all(torch.equal(loaded[name], value) for name, value in states.items())


def decoder(backbone: StoredBackbone) -> nn.Module:
    vae: Any = backbone.vae  # pyright: ignore[reportAttributeAccessIssue] (every family has one)
    return vae.decoder


# --- half precision ---------------------------------------------------------------------------------------------------


@every_family
def test_adapters_on_a_half_precision_base_have_full_gradients_near_those_of_the_full_base(
    family: str, tiny_bases: Path
) -> None:
    full, half = (lora(load_backbone(tiny_bases / family, dtype)) for dtype in (torch.float32, torch.bfloat16))
    for roles in (full, half):
        wake(roles)
    wanted, found = gradients(full, "student"), gradients(half, "student")
    assert wanted.keys() == found.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(gradient.isfinite().all() for gradient in found.values())
    one, other = (torch.cat([gradient.flatten() for _, gradient in sorted(all_.items())]) for all_ in (wanted, found))
    assert torch.cosine_similarity(one, other, dim=0) > 0.95


# --- dropping the text encoder ----------------------------------------------------------------------------------------


@every_family
def test_a_dropped_text_encoder_is_gone_and_the_rest_works(family: str, tiny_bases: Path) -> None:
    backbone: Any = load_backbone(tiny_bases / family)
    encoders = [
        getattr(backbone, name)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3")
        if hasattr(backbone, name)
    ]
    assert encoders
    held = [weakref.ref(parameter) for encoder in encoders for parameter in encoder.parameters()]
    text = backbone.encode_text(PROMPTS)
    backbone.drop_text_encoder()
    gc.collect()
    assert held
    assert not any(parameter() is not None for parameter in held)
    with pytest.raises((AttributeError, StopIteration)):
        backbone.encode_text(PROMPTS)
    latents = torch.randn(2, *backbone.latent_shape(32, 64))
    with torch.no_grad():
        assert backbone.to("cpu").velocity(latents, torch.tensor([0.3, 0.9]), text, latents).isfinite().all()


def test_numbers_that_are_held_twice_are_freed_too() -> None:
    """As quantised weights are: bitsandbytes keeps them in an attribute of the layer as well."""

    class Packed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.state = [self.weight.data]

    model = nn.Sequential(nn.Sequential(Packed()), Packed())
    held = [weakref.ref(part) for part in model.modules() if isinstance(part, Packed)]
    drop_weights(model)
    gc.collect()
    assert [part() for part in held] == [None, None]
