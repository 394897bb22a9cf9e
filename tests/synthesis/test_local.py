"""Synthesis with a real vision-language model in this process: the shipped judge, which knows nothing of photos."""

import asyncio
import io
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from nopair.data.shards import read_records
from nopair.errors import DataError, MemoryShortError
from nopair.synthesis.engines import opened
from nopair.synthesis.recipe import LocalEngine, load_synthesis
from nopair.synthesis.run import synthesize
from nopair.synthesis.write import read_rejected


def test_a_random_model_verifies_what_a_server_proposed(
    toy: ModuleType, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        toy.scene(seed).save(tmp_path / "photos" / f"{seed}.png")
    judge = {"kind": "local", "path": "tiny:judge", "device": "cpu"}
    changes = {"verify__engine": judge, "verify__threshold": 0.0, "propose__per_image": 2}
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = load_synthesis(toy.recipe(tmp_path, server.url, **changes))
        asyncio.run(synthesize(tmp_path / "photos", tmp_path / "dataset", recipe, Console(file=io.StringIO())))
    records = list(read_records(tmp_path / "dataset"))
    assert records
    assert all(0 <= score.probability <= 1 for record in records for score in record.scores)
    assert {stage.engine for stage in records[0].stages} == {"server", "local"}


def test_an_engine_that_does_not_fit_its_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    async def enter() -> None:
        async with opened(LocalEngine(kind="local", path="tiny:judge", device="cpu")):
            pass

    monkeypatch.setattr(torch.nn.Module, "to", fails)
    with pytest.raises(MemoryShortError, match=r"2.50 GiB more\); give the engine tiny:judge dtype: bfloat16"):
        asyncio.run(enter())


def test_what_a_random_model_says_of_a_photo_is_set_aside(
    toy: ModuleType, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    toy.scene(1).save(tmp_path / "photos" / "1.png")
    shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / "2.png")
    judge = {"kind": "local", "path": "tiny:judge", "device": "cpu"}
    changes = {"caption__engine": judge, "caption__max_tokens": 4, "caption__retries": 1}
    recipe = load_synthesis(toy.recipe(tmp_path, "http://127.0.0.1:9/v1", **changes))
    with pytest.raises(DataError, match=r"rejected\.jsonl: caption: answer not of the form asked for 1"):
        asyncio.run(synthesize(tmp_path / "photos", tmp_path / "dataset", recipe, Console(file=io.StringIO())))
    aside = [(one.name, one.reason) for one in read_rejected(tmp_path / "dataset")]
    assert aside == [("2.png", "copy of another photo"), ("1.png", "answer not of the form asked for")]
