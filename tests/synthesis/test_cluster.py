"""The stages as a Ray Data job: a real local Ray gives byte for byte what one process gives."""

import asyncio
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import nopair
from nopair.data.places import WORK
from nopair.errors import UnavailableError
from nopair.synthesis.cluster import gpus, in_order, part_rows, part_work
from nopair.synthesis.recipe import LocalEngine, load_synthesis
from nopair.synthesis.run import Work, finish, look_through, synthesize

ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_ADDRESS": "local"}


def contents(dataset: Path) -> dict[str, str]:
    files = (path for path in sorted(dataset.rglob("*")) if path.is_file() and WORK not in path.parts)
    return {path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def once(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A dataset of one process, and how many answers it took."""
    folder = tmp_path_factory.mktemp("once")
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = load_synthesis(toy.recipe(folder, server.url))
        asyncio.run(synthesize(photos, folder / "dataset", recipe, Console(file=io.StringIO())))
        return folder / "dataset", len(server.answered)


def test_parts_give_the_same_bytes_in_whatever_order_they_end(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path: Path, once: tuple[Path, int]
) -> None:
    """Without Ray: the rows, what is done with each, and how they are put together."""
    dataset, console = tmp_path / "dataset", Console(file=io.StringIO())
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = load_synthesis(toy.recipe(tmp_path, server.url))
        work = Work(dataset / WORK)
        scanned = look_through(photos, dataset, recipe, console)
        rows = part_rows(scanned.photos, 3)
        assert len(rows) == 3
        for _ in range(2):  # the second time from the journals
            results = [json.loads(json.dumps(part_work(work.folder, recipe, 3)(row))) for row in reversed(rows)]
        assert len(server.answered) == once[1]
    for result in results:
        assert "received (no prices are given)" in result["said"]
        assert (work.folder / f"part-{result['part']}-of-3.log").read_text() == result["said"]
    kept, aside = in_order(results, scanned.photos)
    finish(dataset, kept, [*scanned.aside, *aside], recipe, console)
    assert contents(dataset) == contents(once[0])


def test_a_part_asks_for_a_gpu_only_if_a_model_is_to_run_on_it(toy: ModuleType, tmp_path: Path) -> None:
    recipe = load_synthesis(toy.recipe(tmp_path, "http://127.0.0.1:9/v1"))
    assert gpus(recipe) == 0
    for device, needed in (("cpu", 0), ("cuda:0", 1)):
        local = LocalEngine(kind="local", path="tiny:judge", device=device)
        assert gpus(recipe.model_copy(update={"verify": recipe.verify.model_copy(update={"engine": local})})) == needed


def test_an_error_of_a_part_is_the_errors_of_all(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path: Path
) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Fail(500)) as server:
        recipe = load_synthesis(toy.recipe(tmp_path, server.url, caption__engine__attempts=1))
        work = Work(tmp_path / "dataset" / WORK)
        scanned = look_through(photos, tmp_path / "dataset", recipe, Console(file=io.StringIO()))
        (row,) = part_rows(scanned.photos, 1)
        with pytest.raises(UnavailableError, match="status 500"):
            in_order([part_work(work.folder, recipe, 1)(row)], scanned.photos)


@pytest.mark.skipif(not os.environ.get("TEST_RAY"), reason="starting Ray takes half a minute; TEST_RAY=1 runs it")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; pip install 'nopair[ray]'")
def test_a_real_ray_gives_the_same_bytes(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path: Path, once: tuple[Path, int]
) -> None:
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        command = [sys.executable, "-m", "nopair", "synthesize", str(photos), "-o", str(tmp_path / "dataset")]
        command += ["--recipe", str(toy.recipe(tmp_path, server.url)), "--ray", "3"]
        environment = {**os.environ, **ALONE, "PYTHONPATH": str(Path(nopair.__file__).parents[1])}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        assert len(server.answered) == once[1]
    assert contents(tmp_path / "dataset") == contents(once[0])
    assert len(list((tmp_path / "dataset" / WORK).glob("answers-*-of-3.jsonl"))) == 3
