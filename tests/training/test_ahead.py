"""Reading ahead changes nothing; ranks together read each record once per epoch, however many go on after a stop."""

import io
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from nopair.config import PhaseConfig
from nopair.data.photos import PhotoSource
from nopair.data.records import Photo, Record, measure
from nopair.data.shards import write_dataset
from nopair.data.tables import open_table
from nopair.errors import DataError
from nopair.training.ahead import Ahead
from nopair.training.parallel import ALONE, Ranks

BATCH, RECORDS = 12, 96


def dataset(folder: Path, count: int = RECORDS) -> Path:
    def record(number: int) -> Record:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20 if number % 3 else 40), (number, 0, 0)).save(buffer, format="PNG")
        facts = measure(buffer.getvalue(), "it")
        return Record(
            id=str(number),
            image=Photo(bytes=buffer.getvalue()),
            height=facts.height,
            width=facts.width,
            image_hash=facts.image_hash,
            image_length=facts.image_length,
            instruction="add a hat",
            caption=str(number),
            edited_caption="a hat",
            category="add",
            subject="hat",
            source="mine",
            licence="CC0",
        )

    write_dataset(folder, map(record, range(count)), rows=40)
    return folder


def seen(directory: Path) -> list[int]:
    results = [torch.load(path, weights_only=True)["seen"] for path in sorted(directory.glob("result-*.pt"))]
    return torch.cat(results).tolist()


def test_ranks_together_read_each_record_once_per_epoch_before_and_after_a_resume(
    crew: ModuleType, tmp_path: Path
) -> None:
    """Two epochs of 8 steps: two processes do the first 5 steps, three the others."""
    path = dataset(tmp_path / "set")
    for directory, world, first, last in ((tmp_path / "a", 2, 0, 5), (tmp_path / "b", 3, 5, 16)):
        feed = crew.Feed(path, BATCH, first, last)
        assert crew.together(directory, world, crew.in_step, feed, directory) == [0] * world
    before, after = seen(tmp_path / "a"), seen(tmp_path / "b")
    assert len(before) == 5 * BATCH
    alone = crew.Feed(path, BATCH, 0, 16)(ALONE)["seen"].tolist()
    assert sorted(alone[:RECORDS]) == sorted(alone[RECORDS:]) == list(range(RECORDS))
    assert sorted(before) == sorted(alone[: 5 * BATCH])
    assert sorted(before + after) == sorted(2 * list(range(RECORDS)))


def plan(batch: int, accumulate: int = 1, steps: int = 20) -> PhaseConfig:
    return PhaseConfig(steps=steps, batch=batch, accumulate=accumulate, lr=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_reading_ahead_changes_nothing_and_guesses_right(rank: int, tmp_path: Path) -> None:
    photos = PhotoSource.of(open_table(dataset(tmp_path, 30)), ((8, 8), (16, 8)), group=24, seed=0, nothing_share=0.3)
    plans = (plan(12), plan(8, accumulate=2))
    for phase, guessed in ((plans[0], plans), (plans[1], plans), (plans[1], plans[1:])):
        ahead = Ahead(photos, guessed, Ranks(rank, 2), 2)
        begun = False
        for step in range(6):
            for piece in Ranks(rank, 2).pieces(step, phase.batch, phase.accumulate):
                known = set(piece) <= ahead._pending.keys()
                assert known or not begun or phase is not guessed[0]  # else it takes this for the other phase
                begun = True
                made, direct = ahead.batch(piece), photos.batch(piece)
                assert torch.equal(made.reference, direct.reference)
                assert (made.captions, made.categories) == (direct.captions, direct.categories)
                assert len(ahead._pending) <= 2 * 12
    for short in (plan(12, steps=3), plan(8, steps=2)):  # past the end of the first phase, the next one's pieces
        ahead = Ahead(photos, [short, plan(8)], ALONE, 1)
        ahead.batch(range(64, 72))
        assert set(range(72, 80)) <= ahead._pending.keys()
    end = Ahead(photos, [plan(4, steps=2)], ALONE, 1)
    end.batch(range(4, 8))
    assert not end._pending


def test_what_a_thread_meets_is_told_when_its_record_is_due(tmp_path: Path) -> None:
    folder = dataset(tmp_path, 8)
    shard = folder / "data" / "train-00000.parquet"
    table = open_table(folder)
    content = shard.read_bytes()
    photo = table.photo(5)[1]
    shard.write_bytes(content.replace(photo, photo[:-9] + bytes(9)))
    photos = PhotoSource.of(open_table(folder), ((8, 8),), group=2, seed=0, nothing_share=0.0)
    bad = next(index for index in range(8) if photos.order.row(index) == 5)
    ahead = Ahead(photos, [plan(1)], ALONE, 2)
    for index in range(bad):
        ahead.batch([index])
    with pytest.raises(DataError, match=r"row 5 \(5\): is not the photo"):
        ahead.batch([bad])
