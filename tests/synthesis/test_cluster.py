"""The stages as a Ray Data job: a real local Ray gives byte for byte what one process gives."""

import asyncio
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import nopair
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import WORK, synthesize

ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_ADDRESS": "local"}


def contents(dataset: Path) -> dict[str, str]:
    files = (path for path in sorted(dataset.rglob("*")) if path.is_file() and WORK not in path.parts)
    return {path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; pip install 'nopair[ray]'")
def test_parts_on_ray_give_the_same_bytes_and_are_not_asked_again(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "once").mkdir()
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = load_synthesis(toy.recipe(tmp_path / "once", server.url))
        asyncio.run(synthesize(photos, tmp_path / "once" / "dataset", recipe, Console(file=io.StringIO())))
        alone = len(server.asked)
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        command = [sys.executable, "-m", "nopair", "synthesize", str(photos), "-o", str(tmp_path / "dataset")]
        command += ["--recipe", str(toy.recipe(tmp_path, server.url)), "--ray", "3"]
        source = str(Path(nopair.__file__).parents[1])
        environment = {**os.environ, **ALONE, "PYTHONPATH": source}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        assert len(server.answered) == alone
    assert contents(tmp_path / "dataset") == contents(tmp_path / "once" / "dataset")
    assert len(list((tmp_path / "dataset" / WORK).glob("answers-*-of-3.jsonl"))) == 3
