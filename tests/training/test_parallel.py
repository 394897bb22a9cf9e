"""Several processes train as one would: the same numbers, the same decisions, and nobody is left behind."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nopair.config import load_recipe
from nopair.errors import ConfigError, Interrupted, TrainingError
from nopair.training import checkpoint
from nopair.training.loop import run_phases
from nopair.training.metrics import read
from nopair.training.parallel import ALONE, Ranks, joined
from nopair.training.run import compose

# Rank 1 of 2 has the records 2, 3 of step 0, 6, 7 of step 1, and 10, 11 of step 2.
OF_RANK_1 = 6
TWO_PIECES = ("warmup.accumulate=2", "npedit.accumulate=2")
"""One process that does, one after another, what two ranks do at once."""


def results(directory: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(directory.glob("result-*.pt"))]


def metrics(directory: Path) -> list[tuple[str, int, dict[str, float]]]:
    return [(record.phase, record.step, dict(record.values)) for record in read(directory / "metrics.jsonl")]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert len(one) > 50
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def whole(crew: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Folder and result of a run of one process that nothing interrupts, with the pieces of two ranks."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, crew.Job(directory, TWO_PIECES)(ALONE)


def test_two_processes_give_the_weights_of_one(
    crew: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    """Bit for bit with one process that takes the same pieces, to rounding with one that takes the batch at once."""
    job = crew.Job(tmp_path / "two")
    assert crew.together(job.directory, 2, crew.in_step, job, job.directory) == [0, 0]
    first, second = results(job.directory)
    assert_equal(first, second)
    assert_equal(first, whole[1])
    assert metrics(job.directory) == metrics(whole[0])
    at_once = crew.Job(tmp_path / "one")(ALONE)
    torch.testing.assert_close(first, at_once, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(first[name], at_once[name]) for name in first)  # or the tolerance hides nothing


def test_two_processes_train_the_baselines_as_one(crew: ModuleType, tmp_path: Path) -> None:
    """Rewards are held against those of all ranks, and both take the same updates."""
    group = ("grpo.batch=2", "grpo.group=2", "grpo.moves=1", "grpo.updates=2", "grpo.std=global", "grpo.kl_weight=0.1")
    short = ("warmup.steps=1", "npedit.steps=1", "sft.steps=1", "sft.batch=2", "grpo.steps=2", *group)
    job = crew.Job(tmp_path / "two", short)
    assert crew.together(job.directory, 2, crew.in_step, job, job.directory) == [0, 0]
    first, second = results(job.directory)
    assert_equal(first, second)
    pieces = (*TWO_PIECES, "sft.accumulate=2", "grpo.accumulate=2")
    assert_equal(first, crew.Job(tmp_path / "one", (*short, *pieces))(ALONE))
    found = metrics(job.directory)
    assert [phase for phase, _, _ in found] == ["warmup", "sft", "grpo", "grpo", "npedit"]
    assert found == metrics(tmp_path / "one")


def test_a_bad_loss_of_one_rank_is_refused_by_both(crew: ModuleType, tmp_path: Path) -> None:
    job = crew.Job(tmp_path / "two", mishap="nan", record=OF_RANK_1)
    assert crew.together(job.directory, 2, crew.in_step, job, job.directory) == [0, 0]
    first, second = results(job.directory)
    assert_equal(first, second)
    assert all(torch.isfinite(value).all() for value in first.values())
    assert [values["skipped"] for _, _, values in metrics(job.directory)] == [0, 0, 0, 1, 1]
    alone = crew.Job(tmp_path / "one", TWO_PIECES, mishap="nan", record=OF_RANK_1)(ALONE)
    assert_equal(first, alone)


def test_gradients_that_not_every_rank_has(crew: ModuleType, tmp_path: Path) -> None:
    assert crew.together(tmp_path, 2, crew.in_step, crew.Uneven(), tmp_path) == [0, 0]
    for result in results(tmp_path):
        found = {name: value.unique().tolist() for name, value in result.items()}
        assert found == {"0": [0.5], "1": [5.0], "2": [20.5], "4": [40.5]}


@pytest.mark.parametrize(("mishap", "codes"), [("killed", [3, -9]), ("bad record", [3, 2])])
def test_a_rank_that_ends_ends_the_other(crew: ModuleType, tmp_path: Path, mishap: str, codes: list[int]) -> None:
    job = crew.Job(tmp_path, mishap=mishap, record=OF_RANK_1)
    assert crew.together(tmp_path, 2, crew.in_step, job, tmp_path) == codes
    said = (tmp_path / "said-0").read_text().splitlines()[-1]
    assert said.startswith("error: another process of this run failed or was killed")
    assert said.endswith("go on with --resume latest")
    assert "Traceback" not in (tmp_path / "said-0").read_text()
    assert "the record is bad" in (tmp_path / "said-1").read_text() or mishap == "killed"
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).position.total == 2


@pytest.mark.parametrize("record", [4, OF_RANK_1])
def test_a_signal_to_one_rank_stops_both(crew: ModuleType, tmp_path: Path, record: int) -> None:
    job = crew.Job(tmp_path, ("checkpoint.every=0",), mishap="SIGTERM", record=record)
    assert crew.together(tmp_path, 2, crew.in_step, job, tmp_path) == [143, 143]
    # The end of warm-up, and the stop, which nobody leaves before it is saved: their launcher would kill the others.
    assert (tmp_path / "saves").read_text() == "0 saved 2\n0 saved 4\n1 left\n"
    assert "everything is saved" in (tmp_path / "said-0").read_text()
    assert "saved" not in (tmp_path / "said-1").read_text()


def test_resumed_with_other_numbers_of_ranks(
    crew: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    """Two ranks, then one, then two: the run that was never interrupted."""
    directory = tmp_path / "run"
    job = crew.Job(directory, mishap="SIGTERM", record=2, phase="warmup")
    assert crew.together(directory, 2, crew.in_step, job, directory) == [143, 143]
    with pytest.raises(Interrupted):  # at step 1 of the second phase
        crew.Job(directory, TWO_PIECES, resume="latest", mishap="SIGTERM", record=5)(ALONE)
    assert checkpoint.latest(directory / "checkpoints").name == "checkpoint-4"
    job = crew.Job(directory, resume="latest")
    assert crew.together(directory, 2, crew.in_step, job, directory) == [0, 0]
    for result in results(directory):
        torch.testing.assert_close(result, whole[1], rtol=1e-4, atol=1e-6)
    assert [record[:2] for record in metrics(directory)] == [record[:2] for record in metrics(whole[0])]


def test_the_command_under_torchruns_environment(crew: ModuleType, tmp_path: Path) -> None:
    """The real models, adapters, two processes: one editor is written and one of them talks."""
    small = (
        *("threads=1", "base.roles=lora", "warmup.steps=1", "warmup.batch=2", "npedit.steps=1", "npedit.batch=2"),
        *("npedit.fake_steps=1", "logging.sample_scenes=1", "logging.samples_every=0"),
    )
    command = ("train", "demo", *small, "--device", "cpu", "-o", str(tmp_path / "run"))
    assert crew.together(tmp_path, 2, crew.nopair, tmp_path, *command) == [0, 0]
    assert "the editor is in" in (tmp_path / "said-0").read_text()
    assert not any(word in (tmp_path / "said-1").read_text() for word in ("editor", "warmup", "npedit"))
    assert crew.together(tmp_path, 2, crew.nopair, tmp_path, *command, "--resume", "latest") == [0, 0]
    assert "resuming after npedit step 1" in (tmp_path / "said-0").read_text()
    assert "resuming" not in (tmp_path / "said-1").read_text()
    assert (tmp_path / "saves").read_text() == "0 saved editor\n" * 2
    crew.train(load_recipe("demo", [*small, *TWO_PIECES, f"output={tmp_path / 'one'}"]), resume=False)
    name = "editor/transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


# One process ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_the_ranks_share_every_sample_of_a_step_once(step: int, world: int, accumulate: int, size: int) -> None:
    batch = world * accumulate * size
    shares = [list(Ranks(rank, world).pieces(step, batch, accumulate)) for rank in range(world)]
    assert {len(share) for share in shares} == {accumulate}
    assert {len(piece) for share in shares for piece in share} == {size}
    assert [index for share in shares for piece in share for index in piece] == list(
        range(step * batch, (step + 1) * batch)
    )


def test_a_batch_that_cannot_be_shared() -> None:
    recipe = load_recipe("demo", ["npedit.batch=6", "npedit.accumulate=2"])
    with pytest.raises(ConfigError, match=r"npedit\.batch=6 cannot be shared by 2 processes .*a multiple of 4"):
        compose(recipe, ranks=Ranks(0, 2))


def test_a_process_alone_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(dist, "all_reduce", None)
    with joined("cpu") as (ranks, device):
        assert (ranks, device) == (ALONE, torch.device("cpu"))
        assert not dist.is_initialized()
        assert ranks.sum({"a": 1.5}) == {"a": 1.5}
        assert ranks.mean(2.5) == 2.5
        assert ranks.largest(3) == 3
        ranks.wait()
        parameter = torch.nn.Parameter(torch.zeros(2))
        ranks.mean_gradients([parameter])
        assert parameter.grad is None


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"WORLD_SIZE": "2"}, "cpu", "LOCAL_RANK is not set, though WORLD_SIZE is; start .* with torchrun"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "RANK is not set"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}, "cpu", "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, "cpu", "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "2"}, "cuda:0", "cuda:0 names one GPU for 2 processes"),
        ({}, "tpu", "device 'tpu' is unknown"),
    ],
)
def test_what_cannot_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], device: str, message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined(device):
        pass
    assert not dist.is_initialized()


def test_a_rank_that_does_not_write(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no file; and layers that draw, draw for its own samples: no two ranks or steps alike."""
    monkeypatch.setattr(dist, "all_reduce", lambda *arguments: None)
    drawn = []
    for rank in range(2):
        recipe = toy.toy_recipe()
        phases = toy.toy_phases(recipe)
        for phase in phases:
            phase.step = lambda index, step=phase.step: (drawn.append(torch.rand(()).item()), step(index))[1]
        console = Console(quiet=True)
        directory = tmp_path / str(rank)
        run_phases(phases, recipe=recipe, directory=directory, console=console, ranks=Ranks(rank, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert len(drawn) == len(set(drawn)) == 24


def test_a_rank_whose_companions_are_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("[/a/pair.cc:553] Connection closed by peer [::1]:2. More.\nAnd more")

    monkeypatch.setattr(dist, "all_reduce", fail)
    with pytest.raises(TrainingError, match=r"says why \(Connection closed by peer \[::1\]:2\); go on") as caught:
        Ranks(0, 2).wait()
    assert "\n" not in str(caught.value)
