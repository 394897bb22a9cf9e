"""Schedule, accumulation, the guard and the average."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nopair.errors import TrainingError
from nopair.training.optim import Ema, GuardedStep, MuonAdamW, Optimiser, accumulate, learning_rate, split_hidden

# Schedule -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(2, 200), st.floats(0, 1), st.floats(1e-8, 10))
def test_the_schedule_rises_linearly_and_falls_as_a_cosine(warmup: int, after: int, final: float, peak: float) -> None:
    total = warmup + after
    rates = [
        learning_rate(i, peak=peak, warmup_steps=warmup, total_steps=total, final_fraction=final)
        for i in range(total + 2)
    ]
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[:warmup] == pytest.approx([peak * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup] == pytest.approx(peak)
    assert all(a >= b - 1e-12 * peak for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[total - 1 :] == pytest.approx([peak * final] * 3, abs=1e-12 * peak)
    # A cosine is as far above its middle before half-time as it is below after.
    fall = rates[warmup:total]
    assert sum(fall) / len(fall) == pytest.approx(peak * (1 + final) / 2)


def test_a_fraction_of_one_is_constant() -> None:
    rates = {learning_rate(i, peak=0.1, warmup_steps=0, total_steps=9, final_fraction=1.0) for i in range(9)}
    assert rates == {0.1}


def test_a_run_shorter_than_its_warmup() -> None:
    rates = [learning_rate(i, peak=1.0, warmup_steps=10, total_steps=3, final_fraction=0.0) for i in range(3)]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


# Accumulation ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_pieces_give_the_gradient_of_the_whole(pieces: int) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(12, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64, requires_grad=True)
    whole = (inputs @ weight).square().mean()
    (expected,) = torch.autograd.grad(whole, weight)
    loss = accumulate(((part @ weight).square().mean() for part in inputs.chunk(pieces)), pieces)
    assert loss == pytest.approx(whole.item())
    torch.testing.assert_close(weight.grad, expected)


def test_one_graph_at_a_time() -> None:
    weight = torch.ones((), requires_grad=True)
    alive: list[int] = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive.append(1)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            alive.pop()
            return grad

    def losses():
        for _ in range(3):
            assert not alive
            yield Counted.apply(weight)

    accumulate(losses(), 3)
    assert weight.grad == 1


def test_a_wrong_count_of_pieces() -> None:
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="expected 3 losses, got 2"):
        accumulate((weight * i for i in range(2)), 3)


# The guard ------------------------------------------------------------------------------------------------------------


def guarded(parameter: nn.Parameter, clip: float = 1.0, spike: float = 100.0, max_skipped: int = 2) -> GuardedStep:
    optimiser = torch.optim.AdamW([parameter], lr=1.0)
    return GuardedStep(optimiser, label="toy student", clip=clip, spike=spike, max_skipped=max_skipped)


def test_a_good_step_is_that_of_the_optimiser_on_the_clipped_gradient() -> None:
    one, other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([1.0, 2.0]))
    guard = guarded(one, clip=0.5)
    plain = torch.optim.SGD([other], lr=0.1)
    guard = GuardedStep(torch.optim.SGD([one], lr=9.0), label="toy", clip=0.5, spike=100.0, max_skipped=0)
    one.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    outcome = guard.step(1.0, lr=0.1, index=0)
    plain.step()
    assert (outcome.grad_norm, outcome.lr, outcome.skipped) == (5.0, 0.1, False)
    torch.testing.assert_close(one, other)
    assert one.grad is None


def test_a_small_gradient_is_not_scaled_up() -> None:
    one = nn.Parameter(torch.zeros(1))
    guard = GuardedStep(torch.optim.SGD([one], lr=9.0), label="toy", clip=1.0, spike=100.0, max_skipped=0)
    one.grad = torch.tensor([0.5])
    guard.step(1.0, lr=1.0, index=0)
    torch.testing.assert_close(one.detach(), torch.tensor([-0.5]))


@pytest.mark.parametrize(
    ("loss", "gradient", "words"),
    [
        (math.nan, 1.0, "loss is not finite"),
        (math.inf, 1.0, "loss is not finite"),
        (1.0, math.nan, "gradient is not finite"),
        (1.0, math.inf, "gradient is not finite"),
        (1.0, 101.0, "gradient norm 101 is above the limit of 100"),
    ],
)
def test_a_bad_step_changes_nothing_and_too_many_stop(loss: float, gradient: float, words: str) -> None:
    weight = nn.Parameter(torch.ones(1))
    guard = guarded(weight, max_skipped=2)
    weight.grad = torch.ones(1)
    guard.step(1.0, lr=0.1, index=0)
    before, moments = weight.detach().clone(), guard.state()["optimiser"]["state"][0]["exp_avg"].clone()
    for index in (1, 2):
        weight.grad = torch.full((1,), gradient)
        assert guard.step(loss, lr=0.1, index=index).skipped
        assert weight.grad is None
    assert torch.equal(weight.detach(), before)
    assert torch.equal(guard.state()["optimiser"]["state"][0]["exp_avg"], moments)
    weight.grad = torch.full((1,), gradient)
    with pytest.raises(TrainingError) as caught:
        guard.step(loss, lr=0.1, index=3)
    message = str(caught.value)
    assert message.startswith("toy student: ")
    assert words in message
    assert "step 3, 3 steps in a row; lower lr" in message
    assert ("guard.max_grad_norm_spike" in message) == ("above the limit" in words)
    assert torch.equal(weight.detach(), before)


def test_a_good_step_forgives() -> None:
    weight = nn.Parameter(torch.ones(1))
    guard = guarded(weight, max_skipped=1)
    for index in range(10):
        weight.grad = torch.ones(1)
        guard.step(math.nan if index % 2 else 1.0, lr=0.1, index=index)
    assert guard.skipped == 5


def test_the_guard_remembers_across_a_checkpoint() -> None:
    weight = nn.Parameter(torch.ones(1))
    guard = guarded(weight, max_skipped=1)
    guard.step(math.nan, lr=0.1, index=0)
    other = guarded(weight, max_skipped=1)
    other.load_state(guard.state())
    assert other.skipped == 1
    with pytest.raises(TrainingError):
        other.step(math.nan, lr=0.1, index=1)


def test_weights_of_little_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        guarded(nn.Parameter(torch.ones(1, dtype=torch.bfloat16)))


# The average ----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8))
def test_the_average_is_the_weighted_sum(decay: float, values: list[float]) -> None:
    parameter = torch.zeros(1)
    ema = Ema({"w": parameter}, decay)
    for value in values:
        parameter.fill_(value)
        ema.update()
    expected = sum((1 - decay) * decay ** (len(values) - 1 - i) * value for i, value in enumerate(values))
    assert ema.weights()["w"].item() == pytest.approx(expected, abs=1e-4)


def test_no_decay_is_the_latest_bit_for_bit() -> None:
    parameter = torch.rand(100)
    ema = Ema({"w": parameter}, 0.0)
    parameter.copy_(torch.rand(100))
    ema.update()
    assert torch.equal(ema.weights()["w"], parameter)


def test_the_average_of_rough_weights_is_fine() -> None:
    """In bfloat16 the last update would round away."""
    parameter = torch.ones(1, dtype=torch.bfloat16)
    ema = Ema({"w": parameter}, 0.999)
    parameter.fill_(2.0)
    ema.update()
    assert ema.weights()["w"].dtype == torch.float32
    assert ema.weights()["w"].item() == pytest.approx(1.001)


def test_applied_lends_the_average_and_gives_the_weights_back() -> None:
    parameter = nn.Parameter(torch.rand(10))
    ema = Ema({"w": parameter}, 0.9)
    with torch.no_grad():
        parameter.add_(1)
    own = parameter.detach().clone()
    seen: list[torch.Tensor] = []

    def fail_inside() -> None:
        with ema.applied():
            seen.append(parameter.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(seen[0], ema.weights()["w"])
    assert not torch.equal(seen[0], own)
    assert torch.equal(parameter, own)
    assert parameter.requires_grad


def test_the_average_goes_on_from_its_state() -> None:
    parameter = torch.zeros(3)
    one, other = Ema({"w": parameter}, 0.9), Ema({"w": torch.zeros(3)}, 0.9)
    parameter.fill_(1)
    one.update()
    other.load_state(one.state())
    assert torch.equal(other.weights()["w"], one.weights()["w"])
    assert other.weights()["w"] is not one.weights()["w"]
    with pytest.raises(ValueError, match="other parameters"):
        Ema({"v": parameter}, 0.9).load_state(one.state())


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        Ema({}, decay)


# Muon -----------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Names as the transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(4, 6)
        self.to_q = nn.Linear(6, 6)
        self.final_layer = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_layer(self.to_q(self.x_embedder(x)).tanh())


def test_only_matrices_between_hidden_states_are_for_muon() -> None:
    model = Small()
    hidden, rest = split_hidden(dict(model.named_parameters()))
    assert [id(p) for p in hidden] == [id(model.to_q.weight)]
    assert len(rest) == 5


def test_muon_moves_a_matrix_in_all_its_directions_and_the_rest_as_adamw_does() -> None:
    torch.manual_seed(0)
    model, twin = Small(), Small()
    twin.load_state_dict(model.state_dict())
    ours = MuonAdamW(dict(model.named_parameters()), 0.1, (0.9, 0.99), 0.0)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for network, optimiser in ((model, ours), (twin, adamw)):
        assert isinstance(optimiser, Optimiser)
        network(torch.ones(3, 4)).square().mean().backward()  # one kind of input: gradients of rank one
        optimiser.step()
        optimiser.zero_grad()
    torch.testing.assert_close(model.x_embedder.weight, twin.x_embedder.weight)
    torch.testing.assert_close(model.final_layer.bias, twin.final_layer.bias)
    assert not torch.allclose(model.to_q.weight, twin.to_q.weight)


def test_muons_partner_is_given_its_decay_rates_and_both_the_weight_decay() -> None:
    shapes = {"x_embedder.weight": (4, 3), "to_q.weight": (4, 4), "bias": (4,)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    steps = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3)]

    def trained(
        make: Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer | MuonAdamW],
    ) -> dict[str, torch.Tensor]:
        parameters = {name: nn.Parameter(value.clone()) for name, value in values.items()}
        optimiser = make(parameters)
        for gradients in steps:
            for name, parameter in parameters.items():
                parameter.grad = gradients[name].clone()
            optimiser.step()
        return {name: parameter.detach() for name, parameter in parameters.items()}

    ours, undecayed = (
        trained(lambda parameters, decay=decay: MuonAdamW(parameters, 0.1, (0.5, 0.7), decay)) for decay in (0.3, 0.0)
    )
    adamw = trained(lambda own: torch.optim.AdamW(own.values(), lr=0.1, betas=(0.5, 0.7), weight_decay=0.3))
    for name in ("x_embedder.weight", "bias"):
        torch.testing.assert_close(ours[name], adamw[name])
    assert not torch.allclose(ours["to_q.weight"], undecayed["to_q.weight"])


def test_a_resumed_muon_goes_on_the_same() -> None:
    def steps(model: Small, optimiser: MuonAdamW, count: int) -> None:
        for index in range(count):
            model(torch.full((2, 4), float(index + 1))).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()

    torch.manual_seed(0)
    model, twin = Small(), Small()
    first = MuonAdamW(dict(model.named_parameters()), 0.1, (0.9, 0.99), 0.01)
    steps(model, first, 3)
    second = MuonAdamW(dict(twin.named_parameters()), 0.5, (0.9, 0.99), 0.01)
    twin.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert {group["lr"] for group in second.param_groups} == {0.1}
    for optimiser in (first, second):
        for group in optimiser.param_groups:
            group["lr"] = 0.02  # as GuardedStep does
    steps(model, first, 2)
    steps(twin, second, 2)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lora_A.weight", "x_embedder.weight"])
def test_muon_does_with_matrices_alone_or_with_none(name: str) -> None:
    parameter = nn.Parameter(torch.eye(3))
    optimiser = MuonAdamW({name: parameter}, 0.1, (0.9, 0.99), 0.0)
    optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    parameter.square().sum().backward()
    optimiser.step()
    assert not torch.equal(parameter, torch.eye(3))
