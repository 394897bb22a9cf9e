"""The pretended device itself: it computes what the CPU does, and refuses what a GPU would."""

from types import ModuleType

import pytest
import torch
from torch import nn

from nopair.config import load_recipe
from nopair.data.loader import OnDevice
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.scripted import ScriptedJudge
from nopair.types import Question
from nopair.world.records import WorldSource


def test_training_there_is_training_here(far: ModuleType) -> None:
    def weights(device: torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).to(device)
        optimiser = torch.optim.AdamW(model.parameters())
        inputs = torch.randn(5, 4).to(device)
        for _ in range(3):
            model(inputs)[:, [0]].square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        assert {parameter.device for parameter in model.parameters()} == {device}
        return model[0].weight.detach().cpu()

    with far.far_device() as device:
        there = weights(device)
    assert type(there) is torch.Tensor
    torch.testing.assert_close(there, weights(torch.device("cpu")), rtol=0, atol=0)


def test_what_a_gpu_would_refuse(far: ModuleType) -> None:
    with far.far_device() as device:
        there, here = torch.ones(2, 2).to(device), torch.ones(2, 2)
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.where(here > 0, there, there),
            lambda: here[torch.zeros(1, dtype=torch.long, device=device)],
            lambda: nn.Linear(2, 2)(there),
            lambda: there.mul_(here),
        ):
            with pytest.raises(far.MixedDevices):
                mixed()
        assert (there + here.sum()).device == device
        assert there[torch.tensor([0])].tolist() == [[1, 1]]
        assert there.copy_(here).device == device
        assert torch.tensor([1, 2], device=device).tolist() == [1, 2]


def test_records_leave_the_cpu_at_their_source(far: ModuleType) -> None:
    data = load_recipe("demo").data
    source = WorldSource(data.seed, held_out=False)
    with far.far_device() as device:
        batch = OnDevice(source, device).batch([3, 4])
        assert batch.reference.device == device
        assert torch.equal(batch.reference.cpu(), source.batch([3, 4]).reference)
        assert batch.instructions == source.batch([3, 4]).instructions


def test_an_ensemble_answers_where_the_images_are(far: ModuleType) -> None:
    judges = JudgeEnsemble([ScriptedJudge((1.0, 0.0, 0.0)), ScriptedJudge((0.0, 1.0, 0.0))], [1.0, 2.0])
    questions = [[Question("edit", "{edited}?", True)]]
    with far.far_device() as device:
        images = torch.rand(2, 1, 3, 8, 8).to(device)
        assert judges.yes_minus_no(images[0], images[1], questions).device == device
