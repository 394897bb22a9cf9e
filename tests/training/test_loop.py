"""The loop keeps its promises: a run that was stopped, killed or crashed anywhere ends as if nothing had happened."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import nopair
from nopair.config import parse_recipe
from nopair.errors import CheckpointError, ConfigError, Interrupted, OutputError, TrainingError
from nopair.settings import dump
from nopair.training import checkpoint
from nopair.training.loop import preflight, run_phases
from nopair.training.metrics import read

STEPS = 12
"""Steps of the toy run: 5 of `warmup`, 7 of `npedit`; it saves after 3, 5, 8, 11 and 12 in all."""


class Crash(Exception):
    """Stands for an error in the middle of a step."""


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    weights: dict[str, torch.Tensor]
    metrics: tuple[tuple[str, int, dict[str, float]], ...]
    samples: tuple[str, ...]
    state: dict[str, Any]


def go(toy: ModuleType, directory: Path, resume: str | None = None, *overrides: str, at: Any = None) -> Result:
    """Run the toy phases; `at(total)` is called in the step that would be the `total`-th done."""
    recipe = toy.toy_recipe(*overrides)
    phases = toy.toy_phases(recipe)
    offset = 0
    for phase in phases:
        if at is not None:
            _call_in_step(phase, offset, at)
        offset += phase.steps
    run_phases(phases, recipe=recipe, directory=directory, resume=resume, console=Console(quiet=True))
    return Result(
        phases[-1].weights(),
        tuple((record.phase, record.step, dict(record.values)) for record in read(directory / "metrics.jsonl")),
        tuple(sorted(path.name for path in (directory / "samples").iterdir())),
        checkpoint.load(checkpoint.latest(directory / "checkpoints")).state,
    )


def _call_in_step(phase: Any, offset: int, at: Any) -> None:
    original = phase.step

    def step(index: int) -> dict[str, float]:
        at(offset + index + 1)
        return original(index)

    phase.step = step


def assert_same(one: Result, other: Result) -> None:
    """Bit for bit."""
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name
    assert one.metrics == other.metrics
    assert one.samples == other.samples
    torch.testing.assert_close(one.state, other.state, rtol=0, atol=0)


@pytest.fixture(scope="session")
def whole(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that nothing interrupts."""
    return go(toy, tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own Ctrl-C, whatever the session was started under."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_what_a_run_leaves(toy: ModuleType, tmp_path: Path) -> None:
    result = go(toy, tmp_path)
    assert [record[:2] for record in result.metrics] == [
        ("warmup", 2), ("warmup", 4), ("warmup", 5), ("npedit", 2), ("npedit", 4), ("npedit", 6), ("npedit", 7),
    ]  # fmt: skip
    assert result.samples == tuple(f"{name}.png" for name in (
        "npedit-000003", "npedit-000006", "npedit-000007", "warmup-000003", "warmup-000005"
    ))  # fmt: skip
    with Image.open(tmp_path / "samples" / "npedit-000003.png") as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint-11", "checkpoint-12"}
    assert parse_recipe((tmp_path / "recipe.yaml").read_text()) == toy.toy_recipe()
    seconds = [json.loads(line)["time"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert not list(tmp_path.rglob(".*"))


def test_a_run_repeats_itself(toy: ModuleType, tmp_path: Path, whole: Result) -> None:
    torch.rand(17)  # the state of torch's own generator does not matter
    assert_same(go(toy, tmp_path), whole)


def test_layers_that_draw_from_torch_draw_anew_in_every_step(toy: ModuleType, tmp_path: Path) -> None:
    drawn: list[float] = []
    for name, seed in (("one", 1), ("two", 2)):
        go(toy, tmp_path / name, None, f"seed={seed}", at=lambda total: drawn.append(torch.rand(()).item()))
    assert len(set(drawn)) == 2 * STEPS


# Stopped and resumed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_stopped_anywhere_and_resumed(toy: ModuleType, tmp_path: Path, whole: Result, step: int) -> None:
    number = signal.SIGINT if step % 2 else signal.SIGTERM

    def stop(total: int) -> None:
        if total == step:
            signal.raise_signal(number)

    with pytest.raises(Interrupted) as caught:
        go(toy, tmp_path, at=stop)
    assert caught.value.exit_code == 128 + number
    assert checkpoint.latest(tmp_path / "checkpoints").name == f"checkpoint-{step}"
    torch.rand(step)
    assert_same(go(toy, tmp_path, "latest"), whole)


def test_stopped_at_every_step(toy: ModuleType, tmp_path: Path, whole: Result) -> None:
    resume = None
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            go(toy, tmp_path, resume, at=lambda total: signal.raise_signal(signal.SIGTERM))
        resume = "latest"
    assert_same(go(toy, tmp_path, resume), whole)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_crashed_anywhere_and_resumed(toy: ModuleType, tmp_path: Path, whole: Result, step: int) -> None:
    """The metrics of steps that are done once more are not there twice."""

    def crash(total: int) -> None:
        if total == step:
            raise Crash

    with pytest.raises(Crash):
        go(toy, tmp_path, at=crash)
    if step <= 3:
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            go(toy, tmp_path, "latest")
        assert_same(go(toy, tmp_path), whole)
    else:
        assert_same(go(toy, tmp_path, "latest"), whole)


def test_resumed_from_a_path(toy: ModuleType, tmp_path: Path, whole: Result) -> None:
    go(toy, tmp_path / "one", None, "checkpoint.keep=9")
    elsewhere = go(toy, tmp_path / "two", str(tmp_path / "one" / "checkpoints" / "checkpoint-5"))
    for name, value in whole.weights.items():
        assert torch.equal(value, elsewhere.weights[name])


def test_a_resumed_run_does_only_what_is_left(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path, None, "npedit.steps=3")
    recipe = toy.toy_recipe("npedit.steps=3")
    warmup, npedit = toy.toy_phases(recipe)
    run_phases((warmup, npedit), recipe=recipe, directory=tmp_path, resume="latest", console=Console(quiet=True))
    assert warmup.seen == npedit.seen == []
    longer = toy.toy_recipe("npedit.steps=5")
    warmup, npedit = toy.toy_phases(longer)
    run_phases((warmup, npedit), recipe=longer, directory=tmp_path, resume="latest", console=Console(quiet=True))
    assert (warmup.seen, npedit.seen) == ([], [3, 4])
    assert checkpoint.latest(tmp_path / "checkpoints").name == "checkpoint-10"


@pytest.mark.parametrize("warmup", [2, 5, 8])
@pytest.mark.parametrize("npedit", [6, 9])
def test_a_run_goes_on_in_its_second_phase_with_other_steps(
    toy: ModuleType, tmp_path: Path, warmup: int, npedit: int
) -> None:
    """Whatever its first phase is said to have, the run has done 5 + 6 steps and counts on from there."""
    go(toy, tmp_path, None, "npedit.steps=6")
    after = go(toy, tmp_path, "latest", f"warmup.steps={warmup}", f"npedit.steps={npedit}")
    assert checkpoint.latest(tmp_path / "checkpoints").name == f"checkpoint-{5 + npedit}"
    assert after.metrics[-1][:2] == ("npedit", npedit)


@pytest.mark.parametrize("steps", [3, 4, 5, 9])
def test_a_phase_that_is_resumed_has_a_step_left_or_was_at_its_end(toy: ModuleType, tmp_path: Path, steps: int) -> None:
    """It hands over in its last step; that must come, once."""

    def stop(total: int) -> None:
        if total == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(toy, tmp_path, at=stop)
    if steps > 4:
        done: list[int] = []
        go(toy, tmp_path, "latest", f"warmup.steps={steps}", at=done.append)
        assert done == list(range(5, steps + 8))
        assert checkpoint.latest(tmp_path / "checkpoints").name == f"checkpoint-{steps + 7}"
    else:
        with pytest.raises(
            ConfigError, match=rf"warmup\.steps={steps} .* after 4 of 5 steps; .*warmup\.steps=5 or more"
        ):
            go(toy, tmp_path, "latest", f"warmup.steps={steps}")


def test_a_phase_begins_once_and_never_when_it_is_loaded_and_ends_before_the_next(
    toy: ModuleType, tmp_path: Path
) -> None:
    calls: list[str] = []

    def phases() -> tuple[Any, Any]:
        pair = toy.toy_phases(toy.toy_recipe())
        for phase in pair:
            for method in ("begin", "load_state", "end"):
                _note(phase, method, calls)
        return pair

    def run(resume: str | None) -> None:
        run_phases(phases(), recipe=toy.toy_recipe(), directory=tmp_path, resume=resume, console=Console(quiet=True))

    run(None)
    assert calls == ["warmup begin", "warmup end", "npedit begin"]
    calls.clear()
    (tmp_path / "checkpoints" / "checkpoint-12").rename(tmp_path / "last")
    run("latest")
    assert calls == ["npedit load_state", "npedit begin"]  # the toy's own load_state begins


def _note(phase: Any, method: str, calls: list[str]) -> None:
    original = getattr(phase, method)

    def noting(*args: Any) -> None:
        calls.append(f"{phase.name} {method}")
        original(*args)

    setattr(phase, method, noting)


def test_a_phase_without_steps_is_left_out(toy: ModuleType, tmp_path: Path) -> None:
    recipe = toy.toy_recipe("warmup.steps=0")
    warmup, npedit = toy.toy_phases(recipe)
    run_phases((warmup, npedit), recipe=recipe, directory=tmp_path, console=Console(quiet=True))
    assert warmup.seen == []
    assert not vars(warmup).keys() & {"guarded", "ema"}
    assert npedit.seen == list(range(7))


def test_a_stopped_run_says_how_its_own_command_goes_on(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy.toy_recipe()
    phases = toy.toy_phases(recipe)
    _call_in_step(phases[0], 0, lambda total: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run_phases(phases, recipe=recipe, directory=tmp_path, console=Console(), stopped="ask your mother")
    assert "stopped after warmup step 1; ask your mother\n" in capsys.readouterr().out


def test_a_signal_while_the_last_step_is_saved_is_not_lost(
    toy: ModuleType, tmp_path: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.save

    def save(root: Path, position: checkpoint.Position, *rest: Any) -> Path:
        path = original(root, position, *rest)
        if position.total == STEPS:
            signal.raise_signal(signal.SIGTERM)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Interrupted) as caught:
            go(toy, tmp_path)
    assert caught.value.exit_code == 143
    assert_same(go(toy, tmp_path, "latest"), whole)


def test_the_second_ctrl_c_aborts_without_saving(toy: ModuleType, tmp_path: Path) -> None:
    def insist(total: int) -> None:
        if total == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(toy, tmp_path, at=insist)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Real processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(toy: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """Start the toy run as a program; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(Path(nopair.__file__).parents[1])}
        command = [sys.executable, str(toy.__file__), str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def hang_ups_are_heard() -> Iterator[None]:
    """By what a test starts, even if the tests themselves run under nohup, whose children ignore SIGHUP, too."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.strip() == line:
            return
    pytest.fail(f"the program ended without {line!r}: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_asked_to_stop(
    toy: ModuleType, tmp_path: Path, whole: Result, start: Any, number: signal.Signals
) -> None:
    process = start("new")
    wait_for(process, "npedit 1")
    process.send_signal(number)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number, errors
    assert "everything is saved, go on with --resume latest" in errors
    assert "Traceback" not in errors
    assert_same(go(toy, tmp_path, "latest"), whole)


@pytest.mark.parametrize(
    ("call", "left", "last"),
    # The third save writes checkpoint-8: in its state file, and between the rename and the deletion of checkpoint-3.
    [("fsync:16", ".saving-checkpoint-8", 5), ("rmdir:1", ".retired-checkpoint-3", 8)],
)
def test_a_process_that_is_killed_while_it_saves(
    toy: ModuleType, tmp_path: Path, whole: Result, start: Any, call: str, left: str, last: int
) -> None:
    process = start("new", call)
    wait_for(process, "hanging")
    process.kill()
    process.communicate()
    root = tmp_path / "checkpoints"
    assert (root / left).is_dir()
    assert checkpoint.load(checkpoint.latest(root)).position.total == last
    assert_same(go(toy, tmp_path, "latest"), whole)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_a_process_whose_terminal_is_gone_saves(toy: ModuleType, tmp_path: Path, whole: Result) -> None:
    """As of a lost connection: a hang-up, and from then on nothing can be written to the terminal."""
    host, terminal = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(nopair.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(toy.__file__), str(tmp_path), "new"],
        stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, env=environment, start_new_session=True, text=True,
    )  # fmt: skip
    os.close(terminal)
    wait_for(process, "npedit 1")
    os.close(host)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=300)
    assert (tmp_path / "checkpoints").is_dir()
    saved = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"))
    assert saved.position.phase == "npedit"
    assert_same(go(toy, tmp_path, "latest"), whole)


# Mistakes and bad luck ------------------------------------------------------------------------------------------------


def test_a_new_run_does_not_bury_an_old_one(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(CheckpointError, match="add --resume latest, or use another output"):
        go(toy, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_resuming_behind_a_newer_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint-12 is newer than .*checkpoint-11"):
        go(toy, tmp_path, str(tmp_path / "checkpoints" / "checkpoint-11"))


def test_resuming_nothing_leaves_nothing(toy: ModuleType, tmp_path: Path) -> None:
    for resume in ("latest", str(tmp_path / "checkpoint-3")):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            go(toy, tmp_path / "run", resume)
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_recipe(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    with pytest.raises(CheckpointError, match=r"another recipe: warmup\.lr"):
        go(toy, tmp_path, "latest", "warmup.lr=0.5")


def test_what_cannot_be_resumed_is_known_before_anything_is_loaded(toy: ModuleType, tmp_path: Path) -> None:
    recipe = toy.toy_recipe()
    preflight(recipe, tmp_path, None)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        preflight(recipe, tmp_path, "latest")
    go(toy, tmp_path)
    preflight(recipe, tmp_path, "latest")
    with pytest.raises(CheckpointError, match="add --resume latest, or use another output"):
        preflight(recipe, tmp_path, None)
    with pytest.raises(CheckpointError, match=r"another recipe: warmup\.lr"):
        preflight(toy.toy_recipe("warmup.lr=0.5"), tmp_path, "latest")


def test_an_editor_that_was_being_written_when_its_run_was_killed_is_removed(toy: ModuleType, tmp_path: Path) -> None:
    left = tmp_path / ".nopair-0123456789abcdef.part"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    go(toy, tmp_path)
    assert not left.exists()


def test_resuming_with_other_models(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    phases = toy.toy_phases(toy.toy_recipe())
    phases[1].model = torch.nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        run_phases(phases, recipe=toy.toy_recipe(), directory=tmp_path, resume="latest", console=Console(quiet=True))
    assert "\n" not in str(caught.value)


def test_resuming_a_phase_that_is_not_there(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    only_warmup = toy.toy_phases(toy.toy_recipe())[:1]
    with pytest.raises(CheckpointError, match="phase 'npedit', which this run lacks"):
        run_phases(
            only_warmup, recipe=toy.toy_recipe(), directory=tmp_path, resume="latest", console=Console(quiet=True)
        )


def test_damaged_metrics_are_not_lost(toy: ModuleType, tmp_path: Path) -> None:
    go(toy, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("what?\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1, is damaged"):
        go(toy, tmp_path, "latest")
    assert (tmp_path / "metrics.jsonl").read_text() == "what?\n"


def test_loss_that_is_not_a_number(toy: ModuleType, tmp_path: Path, whole: Result) -> None:
    """The run stops with the last good checkpoint in place; without the cause, it goes on from there."""
    recipe = toy.toy_recipe()
    phases = toy.toy_phases(recipe)
    spoilt = phases[1].step

    def step(index: int) -> dict[str, float]:
        hook = phases[1].model.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        try:
            return spoilt(index) if index >= 4 else (hook.remove(), spoilt(index))[1]
        finally:
            hook.remove()

    phases[1].step = step
    with pytest.raises(TrainingError, match=r"npedit: loss is not finite .* at step 5, 2 steps in a row; lower lr"):
        run_phases(phases, recipe=recipe, directory=tmp_path, console=Console(quiet=True))
    assert checkpoint.latest(tmp_path / "checkpoints").name == "checkpoint-8"
    assert_same(go(toy, tmp_path, "latest"), whole)


def test_a_full_disk_while_saving(
    toy: ModuleType, tmp_path: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if (tmp_path / "checkpoints" / "checkpoint-5").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match="No space left on device"):
            go(toy, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-5"}
    assert_same(go(toy, tmp_path, "latest"), whole)


def test_samples_that_cannot_be_written(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OutputError, match=r"warmup-000003\.png cannot be written: No space left"):
        go(toy, tmp_path)
    assert not list((tmp_path / "samples").iterdir())


def test_an_output_that_is_a_file(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        go(toy, tmp_path / "run")


def test_a_recipe_that_no_run_wrote_is_not_replaced(toy: ModuleType, tmp_path: Path) -> None:
    own = tmp_path / "recipe.yaml"
    own.write_text("# mine\n" + toy.RECIPE)
    with pytest.raises(OutputError, match=r"recipe\.yaml: is another recipe.*choose another output"):
        go(toy, tmp_path)
    assert own.read_text() == "# mine\n" + toy.RECIPE
    assert list(tmp_path.iterdir()) == [own]
    own.write_text(dump(toy.toy_recipe()))
    go(toy, tmp_path)


def test_a_recipe_that_a_run_wrote_is_replaced(toy: ModuleType, tmp_path: Path) -> None:
    """By a run resumed with more steps, and by a new one where the checkpoints are gone."""
    go(toy, tmp_path, None, "npedit.steps=3")
    go(toy, tmp_path, "latest", "npedit.steps=4")
    assert parse_recipe((tmp_path / "recipe.yaml").read_text()).npedit.steps == 4
    shutil.rmtree(tmp_path / "checkpoints")
    go(toy, tmp_path, None, "threads=2")
    assert parse_recipe((tmp_path / "recipe.yaml").read_text()).threads == 2


def test_phases_of_the_same_name(toy: ModuleType, tmp_path: Path) -> None:
    phase = toy.toy_phases(toy.toy_recipe())[0]
    with pytest.raises(ValueError, match="same name"):
        run_phases((phase, phase), recipe=toy.toy_recipe(), directory=tmp_path, console=Console(quiet=True))


def test_time_goes_on_where_it_stopped(toy: ModuleType, tmp_path: Path) -> None:
    """Seconds of a resumed run count on from the last record, without the time in between."""

    def crash(total: int) -> None:
        if total == 9:
            raise Crash

    with pytest.raises(Crash):
        go(toy, tmp_path, at=crash)
    path = tmp_path / "metrics.jsonl"
    late = [json.loads(line) | {"time": 1000.0} for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in late))
    begun = time.monotonic()
    go(toy, tmp_path, "latest")
    last = read(path)[-1]
    assert 1000 <= last.seconds <= 1000 + time.monotonic() - begun
