"""Photos of one's own: a stream that is shuffled, endless and says what is wrong with a line."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nopair.config import PHOTO_CATEGORIES as CONFIG_CATEGORIES
from nopair.data import images
from nopair.data.images import cover
from nopair.data.loader import Source
from nopair.data.photos import NOTHING, PhotoSource
from nopair.data.records import CATEGORIES
from nopair.data.tables import open_table
from nopair.errors import DataError

LINE = {"image": "ä 0.png", "instruction": "add a hat", "caption": "a cat", "edited_caption": "a cat with a hat"}


def write(folder: Path, *lines: object, count: int = 3) -> Path:
    for number in range(count):
        Image.new("RGB", (20 + number, 30), (80 * number, 0, 200)).save(folder / f"ä {number}.png")
    file = folder / "photos.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return file


def lines(count: int) -> list[dict[str, str]]:
    return [LINE | {"image": f"ä {n}.png", "category": "add", "caption": f"cat {n}"} for n in range(count)]


def read(file: Path, **changes: object) -> PhotoSource:
    settings = {"sizes": ((16, 24),), "group": 1, "seed": 0, "nothing_share": 0.0} | changes
    return PhotoSource.of(open_table(file), **settings)  # pyright: ignore


def test_every_pass_shows_every_photo_once_in_another_order(tmp_path: Path) -> None:
    file = write(tmp_path, *lines(3), "", *lines(3))
    source = read(file)
    assert isinstance(source, Source)
    passes = [[source.sample(index).caption for index in range(start, start + 6)] for start in (0, 6, 12)]
    assert [sorted(one) for one in passes] == [sorted(2 * ["cat 0", "cat 1", "cat 2"])] * 3
    assert len({tuple(one) for one in passes}) > 1
    assert [read(file).sample(index).caption for index in range(6)] == passes[0]


def test_a_record_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    source = read(write(tmp_path, *lines(3)), nothing_share=0.5)
    together = source.batch([4, 0, 4])
    alone = source.batch([4])
    assert together.reference.shape == (3, 3, 16, 24)
    assert torch.equal(together.reference[2], alone.reference[0])
    assert together.instructions[0] == together.instructions[2] == alone.instructions[0]


def test_nothing_agrees_in_all_words(tmp_path: Path) -> None:
    source = read(write(tmp_path, *lines(3)), nothing_share=0.3)
    batch = source.batch(range(200))
    asked = [index for index in range(200) if batch.categories[index] == "nothing"]
    assert 30 < len(asked) < 90
    for index in asked:
        assert batch.instructions[index] == NOTHING
        assert batch.edited_captions[index] == batch.captions[index]


def test_the_categories_are_said_once() -> None:
    assert CONFIG_CATEGORIES is CATEGORIES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[]", "line 2: Input should be an object"),
        (LINE, "line 2: category: is missing; docs/data.md has the fields"),
        (LINE | {"category": "hat"}, "line 2: category"),
        (LINE | {"category": "add", "edited": "b.png"}, "line 2: edited: unknown field; docs/data.md"),
        (LINE | {"prompt": "go"}, "line 2: prompt: unknown field, and there is no category; docs/data.md"),
        (LINE | {"category": "add", "instruction": ""}, "line 2: instruction"),
        (LINE | {"category": "remove"}, "line 2: a removal needs a subject"),
        (LINE | {"category": "add", "image": "9.png"}, "line 2: there is no image 9.png"),
        (LINE | {"category": "add", "image": 9}, "line 2: image"),
    ],
)
def test_a_bad_line_is_named(line: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, lines(1)[0], line))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is empty"):
        read(write(tmp_path, "", " "))
    file = write(tmp_path, *lines(1))
    (tmp_path / "ä 0.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"ä 0.png.*data\.max_broken=1 or more"):
        read(file).batch([0])


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), height=st.integers(1, 20), width=st.integers(1, 20))
def test_cover_fills_the_size_and_leaves_one_that_fits(rows: int, columns: int, height: int, width: int) -> None:
    noise = torch.rand(3, rows, columns)
    covered = cover(noise, height, width)
    assert covered.shape == (3, height, width)
    assert 0 <= covered.min() <= covered.max() <= 1
    if (rows, columns) == (height, width):
        assert torch.equal(covered, noise)


def test_cover_cuts_the_middle_and_does_not_squash() -> None:
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1.0
    assert torch.equal(cover(wide, 8, 8), torch.ones(3, 8, 8))
    assert cover(wide, 4, 4).min() > 0.9
    assert torch.equal(cover(wide.mT, 8, 8), torch.ones(3, 8, 8))


def test_a_strip_is_covered_without_scaling_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """40000x8 pixels scaled to cover 512x512 are 16 gigabytes."""
    strip = torch.rand(3, 8, 600)
    whole = [cover(one, 64, 48) for one in (strip, strip.mT)]
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 * 4)
    sizes: list[int] = []

    def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        sizes.append(height * width)
        return scaled(pixels, height, width)

    scaled = images._resize
    monkeypatch.setattr(images, "_resize", resize)
    for one, before in zip((strip, strip.mT), whole, strict=True):
        assert torch.allclose(cover(one, 64, 48), before, atol=1e-4)
    assert max(sizes) < 64 * 48 * 4
    monkeypatch.undo()
    assert cover(torch.zeros(3, 8, 40000), 512, 512).shape == (3, 512, 512)


BUCKETS = ((16, 16), (24, 12), (12, 24))


def mixed(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """Photos of three shapes and three categories; a pixel tells the number."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number}.png"
        height, width = ((20, 20), (40, 20), (18, 40))[number % 3]
        Image.new("RGB", (width, height), (number, 0, 0)).save(folder / name)
        if number in broken:
            (folder / name).write_bytes((folder / name).read_bytes()[:45])
        category = "remove" if number % 5 == 0 else "add"
        rows.append(LINE | {"image": name, "category": category, "caption": f"cat {number}", "subject": "cat"})
    (folder / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "photos.jsonl"


def test_batches_have_one_size_and_photos_fill_it(tmp_path: Path) -> None:
    source = read(mixed(tmp_path, 33), sizes=BUCKETS, group=4)
    seen = []
    for start in range(0, 33 * 4, 4):
        batch = source.batch(range(start, start + 4))
        assert tuple(batch.reference.shape[2:]) in BUCKETS
        for image, caption in zip(batch.reference, batch.captions, strict=True):
            number = int(caption.removeprefix("cat "))
            torch.testing.assert_close(image, torch.tensor([number / 255, 0, 0])[:, None, None].expand_as(image))
            seen.append((number, tuple(image.shape[1:])))
    assert sorted(number for number, _ in seen) == sorted(4 * list(range(33)))
    own = [shape == BUCKETS[(0, 1, 2)[number % 3]] for number, shape in seen]
    assert sum(own) > 0.7 * len(own)


def test_shares_of_categories(tmp_path: Path) -> None:
    file = mixed(tmp_path, 60)
    source = read(file, sizes=BUCKETS, group=4, shares={"remove": 3.0, "default": 1.0})
    asked = [source.sample(index).category for index in range(120)]
    assert 84 < asked.count("remove") < 96  # three of four
    with pytest.raises(DataError, match="names style, but no record"):
        read(file, shares={"style": 1.0})
    only = read(file, shares={"remove": 1.0})
    assert {only.sample(index).category for index in range(40)} == {"remove"}


def test_broken_photos_are_counted_named_and_too_many_are_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = mixed(tmp_path, 12, broken=(3, 7))
    source = read(file, max_broken=2)
    seen = [source.sample(index).caption for index in range(36)]
    assert {"cat 3", "cat 7"}.isdisjoint(seen)
    assert set(source.broken.found) == {3, 7}
    for number in (3, 7):
        (told,) = [one for one in caplog.messages if f"{number}.png" in one]
        assert "another stands in for it" in told
    assert [source.sample(index).caption for index in reversed(range(36))] == seen[::-1]
    strict = read(file, max_broken=1)
    with pytest.raises(DataError, match=r"2 photos cannot be read, the last: .*\.png.*max_broken=2 or more"):
        strict.batch(range(12))
    hopeless = read(mixed(tmp_path / "all", 3, broken=(0, 1, 2)), max_broken=9)
    with pytest.raises(DataError, match="no photo of a whole bucket"):
        hopeless.sample(0)
    with pytest.raises(DataError, match=r"3\.png: .*take its record out"):  # its size cannot be known
        read(file, sizes=BUCKETS)
