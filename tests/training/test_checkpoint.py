"""A checkpoint is complete or absent, whatever fails and whenever; a damaged or foreign one is refused in one line."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nopair.config import Recipe, Run, load_recipe
from nopair.errors import CheckpointError, OutputError
from nopair.training import checkpoint
from nopair.training.checkpoint import Checkpoint, Position, clean, latest, load, newest_total, require_same_run, save

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), 0: torch.tensor(7, dtype=torch.int64)},
    "values": [1, 2.5, True, None, "text", (0.9, 0.999)],
}


@pytest.fixture
def recipe(toy: ModuleType) -> Recipe:
    return toy.toy_recipe()


def numbers(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in root.glob("checkpoint-*"))


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def test_what_is_saved_is_loaded(tmp_path: Path, recipe: Recipe) -> None:
    path = save(tmp_path, Position("npedit", 3, 8), STATE, recipe, keep=1)
    assert path == tmp_path / "checkpoint-8" == latest(tmp_path)
    loaded = load(path)
    assert loaded.position == Position("npedit", 3, 8)
    assert loaded.recipe == recipe.model_dump(mode="json")
    assert loaded.state["values"] == STATE["values"]
    assert isinstance(loaded.state["values"][-1], tuple)
    torch.testing.assert_close(loaded.state["weights"], STATE["weights"], rtol=0, atol=0)
    assert not hidden(tmp_path)


def test_the_newest_are_kept_by_number_not_by_name(tmp_path: Path, recipe: Recipe) -> None:
    for total in (5, 9, 10, 11, 100):
        save(tmp_path, Position("warmup", total, total), STATE, recipe, keep=2)
    assert numbers(tmp_path) == [11, 100]
    assert latest(tmp_path).name == "checkpoint-100"
    assert newest_total(tmp_path) == 100
    assert not hidden(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("checkpoint-best", "checkpoint-07", "notes.txt"):
        (tmp_path / name).mkdir()
    save(tmp_path, Position("warmup", 1, 1), STATE, recipe, keep=1)
    clean(tmp_path)
    assert latest(tmp_path).name == "checkpoint-1"
    assert len(list(tmp_path.iterdir())) == 4


def test_one_of_the_same_step_is_replaced(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, Position("warmup", 1, 1), {"x": 1}, recipe, keep=1)
    save(tmp_path, Position("warmup", 1, 1), {"x": 2}, recipe, keep=1)
    assert load(latest(tmp_path)).state == {"x": 2}


def test_what_a_killed_save_left_is_no_obstacle(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / ".saving-checkpoint-1").mkdir()
    (tmp_path / ".saving-checkpoint-1" / "rest").write_text("")
    save(tmp_path, Position("warmup", 1, 1), {"x": 1}, recipe, keep=1)
    assert {path.name for path in load(latest(tmp_path)).path.iterdir()} == {
        "state.pt",
        "recipe.yaml",
        "checkpoint.json",
    }


def test_nothing_to_resume(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="start the run without --resume"):
            latest(root)
        assert newest_total(root) == 0
        clean(root)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("value", [{1}, object(), b"bytes", {(1, 2): 3}, {"deep": [{"x": complex(1)}]}])
def test_a_state_that_could_not_be_read_back_is_refused(tmp_path: Path, recipe: Recipe, value: object) -> None:
    with pytest.raises(TypeError, match=r"state\['bad'\]"):
        save(tmp_path, Position("warmup", 1, 1), {"bad": value}, recipe, keep=1)
    assert not list(tmp_path.iterdir())


# Failures while saving ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is executed, clean-up included."""


def break_nth_call(monkeypatch: pytest.MonkeyPatch, number: int, make: Callable[[], BaseException]) -> list[str]:
    """Every call that touches the disk is counted, and the `number`-th raises. Returns the names of the calls made."""
    made: list[str] = []

    def breaking(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(made_by, Killed) for made_by in stopped):
                return None  # the process is gone
            made.append(name)
            if len(made) == number:
                error = make()
                stopped.append(error)
                raise error
            return original(*args, **kwargs)

        return wrapper

    stopped: list[BaseException] = []
    monkeypatch.setattr(os, "fsync", breaking("fsync", os.fsync))
    monkeypatch.setattr(shutil, "rmtree", breaking("rmtree", shutil.rmtree))
    monkeypatch.setattr(torch, "save", breaking("save", torch.save))
    monkeypatch.setattr(Path, "rename", breaking("rename", Path.rename))
    monkeypatch.setattr(Path, "mkdir", breaking("mkdir", Path.mkdir))
    return made


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_three_and_break(
    root: Path, recipe: Recipe, number: int, make: Callable[[], BaseException]
) -> list[str] | None:
    """Save steps 1 to 3, keeping 2; the `number`-th disk call of the third fails. None if there were fewer calls."""
    for total in (1, 2):
        save(root, Position("warmup", total, total), {"x": total}, recipe, keep=2)
    with pytest.MonkeyPatch.context() as patch:
        made = break_nth_call(patch, number, make)
        try:
            save(root, Position("warmup", 3, 3), {"x": 3}, recipe, keep=2)
        except (Killed, OutputError):
            return made
    return None


def test_killed_at_any_moment_every_checkpoint_is_whole(tmp_path: Path, recipe: Recipe) -> None:
    calls = []
    for number in range(1, 50):
        root = tmp_path / str(number)
        made = save_three_and_break(root, recipe, number, Killed)
        if made is None:
            break
        calls.append(made[-1])
        assert numbers(root) in ([1, 2], [1, 2, 3], [2, 3])
        clean(root)
        assert not hidden(root)
        for path in root.iterdir():
            assert load(path).state == {"x": load(path).position.total}
        save(root, Position("warmup", 3, 3), {"x": 3}, recipe, keep=2)
        assert numbers(root) == [2, 3]
    assert calls == [
        "mkdir",
        "save",
        "fsync",
        "fsync",
        "fsync",
        "fsync",
        "rename",
        "fsync",
        "rename",
        "rmtree",
        "rmtree",
    ]


def test_a_full_disk_at_any_moment_leaves_nothing_half_written(tmp_path: Path, recipe: Recipe) -> None:
    for number in range(1, 9):  # up to the sync of the renamed folder
        root = tmp_path / str(number)
        assert save_three_and_break(root, recipe, number, disk_full) is not None
        assert numbers(root) in ([1, 2], [1, 2, 3])
        assert not hidden(root)
        for path in root.iterdir():
            assert load(path).state == {"x": load(path).position.total}


def test_the_message_of_a_full_disk(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    break_nth_call(monkeypatch, 3, disk_full)
    with pytest.raises(OutputError) as caught:
        save(tmp_path, Position("warmup", 1, 1), STATE, recipe, keep=1)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'checkpoint-1'} cannot be written: No space left on device; make room and resume"
    )
    assert not list(tmp_path.iterdir())


def test_torch_reporting_a_failed_write(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OutputError, match="file write failed; make room"):
        save(tmp_path, Position("warmup", 1, 1), STATE, recipe, keep=1)


def test_a_real_limit_on_file_size(tmp_path: Path, recipe: Recipe) -> None:
    """The kernel refuses the write in the middle of the tensors."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    save(tmp_path, Position("warmup", 1, 1), STATE, recipe, keep=1)
    former, former_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save(tmp_path, Position("warmup", 2, 2), {"x": torch.zeros(1_000_000)}, recipe, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, former_handler)
    assert numbers(tmp_path) == [1]
    assert not hidden(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        save(tmp_path / "file", Position("warmup", 1, 1), STATE, recipe, keep=1)


# Damaged and foreign checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, recipe: Recipe) -> Path:
    state = {"weights": torch.arange(10_000.0)}
    return save(tmp_path, Position("warmup", 1, 1), state, recipe, keep=1)


@pytest.mark.parametrize("name", ["state.pt", "recipe.yaml", "checkpoint.json"])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*; remove it to resume from the one before"):
        load(saved)


@pytest.mark.parametrize("name", ["state.pt", "recipe.yaml", "checkpoint.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="remove it to resume from the one before"):
        load(saved)


@pytest.mark.parametrize("place", [0, 10_000, 20_000, -10])
def test_flipped_bytes(saved: Path, place: int) -> None:
    content = bytearray((saved / "state.pt").read_bytes())
    for offset in range(4):
        content[place + offset] ^= 0xFF
    (saved / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged state\.pt"):
        load(saved)


def test_a_file_that_cannot_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        load(saved)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "1", '{"format": 1}', '{"format": 1, "phase": "a", "step": "x"}'])
def test_a_strange_manifest(saved: Path, text: str) -> None:
    (saved / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"no readable checkpoint\.json"):
        load(saved)


def test_a_format_of_the_future(saved: Path) -> None:
    manifest = json.loads((saved / "checkpoint.json").read_text()) | {"format": 99}
    (saved / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"has format 99, this nopair reads {checkpoint.FORMAT}"):
        load(saved)


def test_a_program_in_the_state_is_not_run(saved: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"x": Evil()}, saved / "state.pt")
    manifest = json.loads((saved / "checkpoint.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256((saved / "state.pt").read_bytes()).hexdigest()
    (saved / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved)
    assert not (tmp_path / "owned").exists()


def _require(loaded: Checkpoint, recipe: Run) -> None:
    require_same_run(loaded.path, loaded.recipe, recipe)


@pytest.mark.parametrize(
    "override",
    ["npedit.lr=1e-3", "seed=4", "npedit.guidance.add=2", "base.roles=lora", "data.categories=[add]", "warmup.batch=4"],
)
def test_another_recipe_is_refused(saved: Path, toy: ModuleType, override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(CheckpointError, match=f"another recipe: {key} is .* there and .* here") as caught:
        _require(load(saved), toy.toy_recipe(override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output=elsewhere",
        "threads=2",
        "warmup.steps=50",
        "npedit.steps=70",
        "logging.every=1",
        "checkpoint.keep=9",
        "guard.max_skipped=7",
        "base.checkpointing=true",
        "judge.checkpointing=true",
        "judge.offload=true",
        "data.cache=elsewhere",
    ],
)
def test_what_may_differ_on_resuming(saved: Path, toy: ModuleType, override: str) -> None:
    _require(load(saved), toy.toy_recipe(override))


def test_a_key_that_is_newer_than_the_checkpoint_has_its_default(saved: Path, toy: ModuleType) -> None:
    loaded = load(saved)
    del loaded.recipe["npedit"]["fake_steps"]
    _require(loaded, toy.toy_recipe())
    with pytest.raises(CheckpointError, match=r"npedit\.fake_steps is 3 there and 9 here"):
        _require(loaded, toy.toy_recipe("npedit.fake_steps=9"))


def test_of_photos_what_changes_no_record_may_differ() -> None:
    told = ["data.path=there", "data.height=512"]
    recipe = load_recipe("zimage-24gb", told)
    for override in ("data.max_broken=6", "data.workers=7"):
        require_same_run(Path("x"), recipe.model_dump(mode="json"), load_recipe("zimage-24gb", [*told, override]))
    with pytest.raises(CheckpointError, match=r"data\.seed"):
        require_same_run(Path("x"), recipe.model_dump(mode="json"), load_recipe("zimage-24gb", [*told, "data.seed=7"]))


def test_another_kind_of_run_is_refused(saved: Path, toy: ModuleType) -> None:
    class Other(Run):
        settings: dict[str, int]

    with pytest.raises(CheckpointError, match="another kind of run"):
        _require(load(saved), Other(name="other", output="x", settings={}))


def test_a_key_is_not_free_because_another_starts_alike() -> None:
    """`name` is free, `names` is not."""

    class Other(Run):
        names: str

    saved = Other(name="x", output="x", names="a").model_dump(mode="json")
    with pytest.raises(CheckpointError, match="names is 'a' there and 'b' here"):
        require_same_run(Path("x"), saved, Other(name="y", output="x", names="b"))


def test_a_key_is_not_free_because_another_ends_alike(toy: ModuleType) -> None:
    """`warmup.steps` is free, `npedit.fake_steps` and `sampling.steps` are not."""
    saved = toy.toy_recipe().model_dump(mode="json")
    for override in ("npedit.fake_steps=9", "sampling.steps=9"):
        with pytest.raises(CheckpointError):
            require_same_run(Path("x"), saved, toy.toy_recipe(override))
