"""What bitsandbytes itself does, where it is installed: judges, adapters on its layers, moments, and planned bytes."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nopair.training.run as run_module
from nopair.backbones.folder import NEVER_QUANTISED
from nopair.backbones.load import load_backbone
from nopair.config import load_recipe
from nopair.judges.load import load_judge
from nopair.judges.questions import questions_for
from nopair.planning.packed import PackedLinear
from nopair.planning.plan import EIGHT_BIT
from nopair.precision import Bits
from nopair.settings import path_override
from nopair.training.parts import OPTIMISERS
from nopair.training.run import EDITOR, compose, train

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (the extra `quant`)")
adapters = pytest.importorskip("peft.tuners.lora.bnb", reason="imports bitsandbytes")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAPS = {4: 4 * (16 + 256), 8: 0}
"""Bytes of tables that each layer has, whatever its size: the planner leaves them out."""
BITS_HERE = [8] if DEVICE.type == "cpu" else [8, 4]


@pytest.fixture
def quantise(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Bits, Callable[[str], bool]], None]:
    """Replaces linear layers by bitsandbytes' own. Its NF4 for CPUs is kept from repacking weights for inference."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    gpu = importlib.import_module("gpu")

    def replace(module: nn.Module, bits: Bits, chosen: Callable[[str], bool]) -> None:
        gpu.quantise(module, bits, chosen)
        for layer in module.modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                layer.support_avx512bf16_for_cpu = False

    return replace


@pytest.mark.parametrize("bits", BITS_HERE)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_a_quantised_judge_is_near_the_plain_one_and_gives_gradients(
    family: str, bits: Bits, sibling: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Also after a pass without gradient."""
    sibling("judges/families.py").CASES[family].save(tmp_path)
    before, after = torch.rand(2, 1, 3, 48, 48, device=DEVICE)
    asked = [questions_for("add", "add a hat", "hat")]

    def answers(bits: Bits | None) -> tuple[torch.Tensor, torch.Tensor]:
        judge = load_judge(tmp_path, bits=bits).to(DEVICE)
        kinds = {type(module).__name__ for module in judge.model.modules()}
        assert bool(kinds & {"Linear4bit", "Linear8bitLt"}) == (bits is not None)
        with torch.no_grad():
            silent = judge.yes_minus_no(before, after, asked)
        given = after.clone().requires_grad_()
        odds = judge.yes_minus_no(before, given, asked)
        torch.testing.assert_close(odds.detach(), silent)
        return odds.detach(), torch.autograd.grad(odds.sum(), given)[0]

    (plain, wanted), (odds, gradient) = answers(None), answers(bits)
    assert gradient.isfinite().all()
    torch.testing.assert_close(odds, plain, atol=0.1 if bits == 8 else 1.0, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)
    assert cosine > (0.99 if bits == 8 else 0.7)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("base", ["zimage", "flux2", "sd3", "qwen_image"])
def test_adapters_on_quantised_layers_train_and_leave_them_as_they_are(
    base: str,
    bits: Bits,
    quantise: Callable[..., None],
    tiny_bases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """diffusers quantises on a GPU only; what it makes are layers of this kind."""

    def load(folder: Path, dtype: torch.dtype, bits: Bits | None = None) -> Any:
        backbone = load_backbone(folder, dtype)
        if bits is not None:
            plain = "pos_embed", *NEVER_QUANTISED  # SD3's is a convolution with an adapter
            quantise(backbone.transformer, bits, lambda name: not name.startswith(plain))
            setattr(backbone.transformer, f"is_loaded_in_{bits}bit", True)  # as diffusers does: peft looks there
        return backbone

    monkeypatch.setattr(run_module, "load_backbone", load)
    targets = ["base.lora.targets=[to_q, to_v]"]
    if base == "sd3":
        targets = ["base.lora.targets=[to_q, to_v, pos_embed.proj]", "base.lora.ranks={pos_embed.proj: 64}"]
    small = ["threads=1", "warmup.batch=1", "npedit.batch=1", "logging.sample_scenes=1", "base.lora.rank=2"]
    paths = [path_override("base.path", tiny_bases / base), path_override("output", tmp_path)]
    training = compose(load_recipe("demo", [*small, *targets, *paths, "base.roles=lora", f"base.bits={bits}"]), DEVICE)
    adapted = [
        m for m in training.backbone.transformer.modules() if isinstance(m, adapters.Linear4bit | adapters.Linear8bitLt)
    ]  # pyright: ignore
    assert adapted
    packed = [layer.get_base_layer().weight.detach().clone() for layer in adapted]
    start = {name: value.detach().clone() for name, value in training.roles.trainable("student").items()}
    for phase in (training.warmup, training.npedit):
        phase.begin()
        metrics = [phase.step(index) for index in range(2)]
        phase.end()
        assert all(torch.tensor(list(found.values())).isfinite().all() for found in metrics)
    after = training.roles.trainable("student")
    assert all(value.isfinite().all() for value in after.values())
    moved = [name for name, value in start.items() if not torch.equal(value, after[name])]
    assert len(moved) > len(start) / 2
    assert all(torch.equal(old, layer.get_base_layer().weight) for old, layer in zip(packed, adapted, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns"), [(96, 128), (640, 320), (1024, 2048)])
def test_a_planned_layer_has_the_bytes_of_a_real_one(
    bits: Bits, rows: int, columns: int, quantise: Callable[..., None]
) -> None:
    plain = nn.Linear(columns, rows, dtype=torch.bfloat16, device=DEVICE)
    planned = PackedLinear(plain, bits)
    holder = nn.ModuleDict({"layer": plain})
    quantise(holder, bits, lambda _name: True)
    real = [value for value in holder.state_dict().values() if value.numel() > 1]
    if bits == 4:  # its last entry is the text of the settings, made when a state is asked for
        real = [value for name, value in holder.state_dict().items() if not name.endswith("bitsandbytes__nf4")]
    held = sum(value.nbytes for value in real)
    counted = sum(value.nbytes for value in (*planned.parameters(), *planned.buffers()))
    assert held == counted + MAPS[bits]


def test_moments_in_8_bits_take_what_is_planned() -> None:
    """In a tensor of at least 4,096 numbers; smaller ones keep theirs in 32 bits."""
    weight = nn.Parameter(torch.linspace(-1, 1, 64 * 128, device=DEVICE).view(64, 128).clone())
    optimiser: Any = OPTIMISERS["adamw8bit"]({"weight": weight}, 1e-2, (0.5, 0.9), 0.1)
    weight.grad = torch.sin(weight.detach())
    optimiser.step()
    kept = {name: value for name, value in optimiser.state[weight].items() if isinstance(value, torch.Tensor)}
    assert kept["state1"].dtype == kept["state2"].dtype == torch.uint8
    held = sum(value.nbytes for name, value in kept.items() if not name.startswith("qmap"))
    assert held == 2 * 4 * weight.numel() * EIGHT_BIT


def test_a_run_with_moments_in_8_bits_resumes_to_the_same_bits(tmp_path: Path) -> None:
    small = ["threads=1", "warmup.steps=0", "npedit.steps=2", "npedit.batch=1", "npedit.optimiser=adamw8bit"]
    rare = ["logging.sample_scenes=1", "logging.samples_every=0", "checkpoint.every=1", "checkpoint.keep=9"]
    run = load_recipe("demo", [*small, *rare, path_override("output", tmp_path / "run")])
    train(run, resume=False)
    whole = load_file(next((tmp_path / "run" / EDITOR / "transformer").glob("*.safetensors")))
    (tmp_path / "run" / "checkpoints" / "checkpoint-2").rename(tmp_path / "lost")
    train(run, resume=True)
    resumed = load_file(next((tmp_path / "run" / EDITOR / "transformer").glob("*.safetensors")))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
