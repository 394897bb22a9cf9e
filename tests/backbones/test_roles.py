import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.backbones.fake import ToyBackbone
from nopair.backbones.roles import TRAINED, FullRoles, LoraRoles, Role, Roles
from nopair.backbones.zimage import ZImageBackbone
from nopair.errors import ConfigError

ZIMAGE_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "w1")
EVERYONE: tuple[Role, ...] = ("student", "teacher", "fake")


def _lora(backbone: Backbone, seed: int = 0) -> LoraRoles:
    targets = ("condition", "hidden") if isinstance(backbone, ToyBackbone) else ZIMAGE_TARGETS
    return LoraRoles.of(backbone, rank=2, alpha=4.0, targets=targets, seed=seed)


both_kinds = pytest.mark.parametrize("make", [FullRoles.of, _lora], ids=["full", "lora"])
Make = Callable[[Backbone], Roles]


def _view(roles: Roles, role: Role) -> Backbone:
    return {"student": roles.student, "teacher": roles.teacher, "fake": roles.fake}[role]


def _velocity(backbone: Backbone) -> Tensor:
    """At fixed inputs, with a reference."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, *backbone.latent_shape(16, 24))
    noisy, reference = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    text = backbone.encode_text(["make the circle red", "a blue square"])
    return backbone.velocity(noisy, torch.tensor([0.3, 0.9]), text, reference)


def _outputs(roles: Roles) -> dict[Role, Tensor]:
    with torch.no_grad():
        return {role: _velocity(_view(roles, role)) for role in EVERYONE}


def _wake(roles: Roles) -> None:
    """Move student and fake away from the teacher and from each other."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for role in TRAINED:
            for parameter in roles.trainable(role).values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def _train(roles: Roles, role: Role) -> None:
    parameters = list(roles.trainable(role).values())
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(2):  # an adapter's first step only moves B
        optimizer.zero_grad()
        roles.backward(_velocity(_view(roles, role)).square().mean(), role)
        optimizer.step()


def _gradients(roles: Roles, role: Role) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in roles.trainable(role).items()}
    for parameter in roles.trainable(role).values():
        parameter.grad = None
    return {name: gradient for name, gradient in found.items() if gradient is not None}


# --- both kinds ---------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("base", ["toy", "zimage"])
def test_at_the_start_all_three_are_the_base(make: Make, base: str, backbone: ZImageBackbone) -> None:
    chosen = ToyBackbone.build(seed=0) if base == "toy" else backbone
    with torch.no_grad():
        expected = _velocity(chosen)
    for velocity in _outputs(make(chosen)).values():
        assert torch.equal(velocity, expected)


@both_kinds
@pytest.mark.parametrize("trained", TRAINED)
def test_training_one_role_leaves_the_others(make: Make, trained: Role) -> None:
    roles = make(ToyBackbone.build(seed=0))
    before = _outputs(roles)
    _train(roles, trained)
    after = _outputs(roles)
    for role in EVERYONE:
        assert torch.equal(before[role], after[role]) == (role != trained)


@both_kinds
def test_gradients_stay_within_the_role(make: Make) -> None:
    roles = make(ToyBackbone.build(seed=0))
    _wake(roles)
    for role, other in (TRAINED, TRAINED[::-1]):
        roles.backward(_velocity(_view(roles, role)).square().mean(), role)
        gradients = _gradients(roles, role)
        assert gradients.keys() == roles.trainable(role).keys()
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())
        assert not _gradients(roles, other)
    assert all(parameter.grad is None for parameter in roles.teacher.transformer.parameters())


@both_kinds
def test_using_other_roles_before_the_backward_pass_changes_nothing(make: Make) -> None:
    roles = make(ToyBackbone.build(seed=0))
    _wake(roles)
    _velocity(roles.student).square().mean().backward()
    expected = _gradients(roles, "student")

    loss = _velocity(roles.student).square().mean()
    _outputs(roles)  # ends with the fake active
    loss.backward()
    torch.testing.assert_close(_gradients(roles, "student"), expected, atol=0, rtol=0)


@both_kinds
def test_no_activation_ever_freezes_a_trained_weight(make: Make) -> None:
    roles = make(ToyBackbone.build(seed=0))
    for active in (*EVERYONE, *EVERYONE):
        roles.activate(active)
        for role in TRAINED:
            assert all(parameter.requires_grad for parameter in roles.trainable(role).values())
    trained = {id(parameter) for role in TRAINED for parameter in roles.trainable(role).values()}
    for parameter in roles.teacher.transformer.parameters():
        assert parameter.requires_grad == (id(parameter) in trained)


@both_kinds
def test_student_and_fake_have_the_same_names_and_no_shared_weight(make: Make) -> None:
    roles = make(ToyBackbone.build(seed=0))
    student, fake = roles.trainable("student"), roles.trainable("fake")
    assert student.keys() == fake.keys()
    assert not any("student" in name or "fake" in name for name in student)
    assert not {p.data_ptr() for p in student.values()} & {p.data_ptr() for p in fake.values()}
    assert roles.trainable("teacher") == {}


@both_kinds
@pytest.mark.parametrize("base", ["toy", "zimage"])
def test_export_is_the_role_with_the_given_weights(make: Make, base: str, backbone: ZImageBackbone) -> None:
    chosen = ToyBackbone.build(seed=0) if base == "toy" else backbone
    names = list(chosen.transformer.state_dict())
    roles = make(chosen)
    _wake(roles)
    before = _outputs(roles)
    for role in EVERYONE:
        average = {name: parameter.detach() * 0.5 for name, parameter in roles.trainable(role).items()}
        exported = roles.export(role, average)
        assert list(exported.state_dict()) == names
        assert not any(isinstance(module, LoraLayer) for module in exported.modules())
        assert not any(parameter.requires_grad for parameter in exported.parameters())
        shipped = _velocity(_view(roles, role).with_transformer(exported))
        for name, after in _outputs(roles).items():
            assert torch.equal(after, before[name])

        live = {name: parameter.detach().clone() for name, parameter in roles.trainable(role).items()}
        with torch.no_grad():
            for name, parameter in roles.trainable(role).items():
                parameter.copy_(average[name])
            torch.testing.assert_close(shipped, _velocity(_view(roles, role)), atol=1e-5, rtol=1e-5)
            for name, parameter in roles.trainable(role).items():
                parameter.copy_(live[name])
        assert torch.equal(shipped, before["teacher"]) == (role == "teacher")


def test_dissolved_roles_leave_what_is_exported_and_nothing_else(backbone: ZImageBackbone) -> None:
    roles = _lora(backbone)
    _wake(roles)
    average = {name: parameter.detach() * 0.5 for name, parameter in roles.trainable("student").items()}
    exported = roles.export("student", average)
    dissolved = roles.dissolve("student", average)
    assert dissolved is backbone.transformer
    assert not any(isinstance(module, LoraLayer) for module in dissolved.modules())
    assert not any(parameter.requires_grad for parameter in dissolved.parameters())
    left = dissolved.state_dict()
    assert left.keys() == exported.state_dict().keys()
    assert all(torch.equal(left[name], value) for name, value in exported.state_dict().items())


@both_kinds
def test_export_refuses_weights_of_something_else(make: Make) -> None:
    roles = make(ToyBackbone.build(seed=0))
    weights = {name: parameter.detach() for name, parameter in roles.trainable("student").items()}
    name = sorted(weights)[0]
    for wrong in (
        {},
        {**weights, "more": torch.zeros(1)},
        {key: value for key, value in weights.items() if key != name},
        {**weights, name: torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match="do not fit the role"):
            roles.export("student", wrong)


@both_kinds
def test_an_exported_model_is_an_ordinary_folder(make: Make, backbone: ZImageBackbone, tmp_path: Path) -> None:
    roles = make(backbone)
    _wake(roles)
    transformer = roles.export("student", roles.trainable("student"))
    backbone.with_transformer(transformer).save(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            _velocity(ZImageBackbone.load(tmp_path)), _velocity(roles.student), atol=1e-5, rtol=1e-5
        )


# --- adapters -----------------------------------------------------------------------------------------------------


def test_hazard_of_checkpointing_with_shared_weights(backbone: ZImageBackbone) -> None:
    """The backward pass of a checkpointed forward runs it again, with the adapter that is active by then."""
    roles = _lora(backbone)
    _wake(roles)
    roles.backward(_velocity(roles.student).square().mean(), "student")
    expected = _gradients(roles, "student")
    backbone.transformer.enable_gradient_checkpointing()

    loss = _velocity(roles.student).square().mean()
    _outputs(roles)  # as in training: the fake score is asked between the student's forward and backward
    loss.backward()  # no error
    wrong = _gradients(roles, "student")
    assert wrong.keys() == expected.keys()
    assert any((wrong[name] - expected[name]).abs().max() > 0.1 * expected[name].abs().max() for name in expected)

    loss = _velocity(roles.student).square().mean()
    _outputs(roles)
    roles.backward(loss, "student")
    torch.testing.assert_close(_gradients(roles, "student"), expected, atol=0, rtol=0)

    loss = _velocity(roles.student).square().mean()
    _outputs(roles)
    roles.activate("student")
    loss.backward()
    torch.testing.assert_close(_gradients(roles, "student"), expected, atol=0, rtol=0)


def test_adapters_are_float32_on_a_half_precision_base(backbone: ZImageBackbone) -> None:
    backbone.transformer.bfloat16()
    roles = _lora(backbone)
    assert {parameter.dtype for parameter in roles.trainable("fake").values()} == {torch.float32}
    roles.backward(_velocity(roles.fake).square().mean(), "fake")
    gradients = _gradients(roles, "fake")
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    exported = roles.export("fake", roles.trainable("fake"))
    assert {parameter.dtype for parameter in exported.parameters()} == {torch.bfloat16}


def test_adapters_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (_lora(ToyBackbone.build(seed=0), seed).trainable("student") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert torch.equal(first[name], same[name])
        assert torch.equal(first[name], other[name]) == name.endswith("lora_B.weight")


def test_the_scale_of_an_adapter_is_alpha_over_rank() -> None:
    backbone = ToyBackbone.build(seed=0)
    before = backbone.transformer.get_parameter("condition.weight").detach().clone()
    roles = LoraRoles.of(backbone, rank=2, alpha=6.0, targets=["condition"], seed=0)
    weights = {name: torch.randn_like(parameter) for name, parameter in roles.trainable("student").items()}
    exported = roles.export("student", weights)
    expected = before + 3.0 * weights["condition.lora_B.weight"] @ weights["condition.lora_A.weight"]
    torch.testing.assert_close(exported.get_parameter("condition.weight"), expected)


@pytest.mark.parametrize(
    ("targets", "message"), [(("to_q", "to_g"), "'to_g': no module.*to_q"), (("norm_q",), "norm_q")]
)
def test_bad_targets_are_named(backbone: ZImageBackbone, targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        LoraRoles.of(backbone, rank=2, alpha=2.0, targets=targets, seed=0)
    assert "\n" not in str(error.value)


def test_a_view_has_the_codecs_of_the_base() -> None:
    backbone = dataclasses.replace(ToyBackbone.build(seed=0), shift=5.0)
    student, pixels = _lora(backbone).student, torch.rand(1, 3, 4, 4)
    assert student.shift_for(64, 64, 4) == 5.0
    assert student.transformer is backbone.transformer
    assert student.latent_shape(4, 6) == (3, 4, 6)
    assert torch.equal(student.encode_image(pixels), backbone.encode_image(pixels))
    assert torch.equal(student.decode_latents(pixels), backbone.decode_latents(pixels))
    assert torch.equal(student.encode_text(["a b"]).features, backbone.encode_text(["a b"]).features)


def test_ranks_of_single_targets_keep_the_scale(backbone: ZImageBackbone) -> None:
    roles = LoraRoles.of(backbone, 4, 8.0, ("to_q", "to_v"), seed=0, ranks={"to_v": 2})
    shapes = {name: tuple(value.shape) for name, value in roles.trainable("student").items()}
    assert {shape[0] for name, shape in shapes.items() if "to_q.lora_A" in name} == {4}
    assert {shape[0] for name, shape in shapes.items() if "to_v.lora_A" in name} == {2}
    scales = {layer.scaling[role] for layer in roles.layers for role in ("student", "fake")}
    assert scales == {2.0}


def test_the_longest_name_decides_on_a_rank_whatever_the_order(backbone: ZImageBackbone) -> None:
    ranks = {"to_q": 2, "0.attention.to_q": 5}
    for ordered in (ranks, dict(reversed(ranks.items()))):
        trainable = LoraRoles.of(copy.deepcopy(backbone), 4, 8.0, ("to_q", "to_v"), seed=0, ranks=ordered).trainable
        found = {name.removesuffix(".lora_A.weight"): len(value) for name, value in trainable("fake").items()}
        for name, rank in found.items():
            if not name.endswith("lora_B.weight"):
                assert rank == (4 if name.endswith("to_v") else 5 if name.endswith("0.attention.to_q") else 2)
