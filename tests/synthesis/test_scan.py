"""Which photos are taken, which count as copies, and how strangers' words are written and read."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from nopair.data.images import load_image
from nopair.errors import ImageError
from nopair.synthesis import scan as scan_module
from nopair.synthesis.fingerprint import BITS, Fingerprint, Seen
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import ScanConfig
from nopair.synthesis.scan import Scanned, scan
from nopair.synthesis.texts import as_data, printable, tidy

CONFIG = ScanConfig(min_side=32, longest_side=96, threads=2)


def scanned(folder: Path, work: Path, config: ScanConfig = CONFIG) -> Scanned:
    with Journal(work / "scan.jsonl") as journal:
        return scan(folder, config, journal, work / "kept")


def test_real_photos_are_all_different_and_their_copies_are_not(toy: ModuleType) -> None:
    pictures = toy.bundled()
    prints = {name: Fingerprint.of(image) for name, image in pictures.items()}
    for name, one in prints.items():
        assert not [other for other in prints if other != name and one.near(prints[other], 6)]
    for name, image in pictures.items():
        small = image.resize((image.width // 3, image.height // 3), Image.Resampling.LANCZOS)
        assert prints[name].near(Fingerprint.of(small), 6), name
        assert prints[name].near(Fingerprint.of(image.quantize(64).convert("RGB")), 6), name


def test_plain_pictures_of_other_colours_are_no_copies() -> None:
    red, blue = (Fingerprint.of(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    assert not red.near(blue, 6)
    assert red.near(Fingerprint.of(Image.new("RGB", (80, 50), "red")), 0)


bits = st.integers(0, 2**BITS - 1)


@given(bits, st.sets(st.integers(0, BITS - 1), max_size=12), st.integers(0, 12))
def test_likeness_is_found_as_a_comparison_with_each_would(one: int, flips: set[int], allowed: int) -> None:
    first = Fingerprint(one, (1, 2, 3))
    other = Fingerprint(one ^ sum(1 << place for place in flips), (5, 2, 3))
    seen = Seen(allowed)
    seen.add(first, "first")
    assert (seen.find(other) == "first") == first.near(other, allowed) == (len(flips) <= allowed)


def test_what_was_looked_at_is_not_looked_at_again(
    toy: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    first = scanned(folder, tmp_path / "work")
    assert len(first.photos) == toy.TAKEN
    looked: list[str] = []

    def look(path: Path) -> object:
        looked.append(path.name)
        return load_image(path)

    monkeypatch.setattr("nopair.synthesis.scan.load_image", look)
    assert scanned(folder, tmp_path / "work") == first
    assert not looked
    toy.scene(50).save(folder / "zz new.png")
    first.photos[0].file.unlink()
    again = scanned(folder, tmp_path / "work")
    assert len(looked) == 2, "the new one, and one whose kept copy is gone"
    assert again.photos[:-1] == first.photos
    assert all(photo.file.is_file() for photo in again.photos)


def test_what_a_killed_scan_left_unfinished_is_removed(photos: Path, tmp_path: Path) -> None:
    taken = scanned(photos, tmp_path).photos
    left = taken[0].file.parent / ".nopair-0123456789abcdef.part"
    left.write_bytes(b"half a photo")
    assert scanned(photos, tmp_path).photos == taken
    assert not left.exists()
    assert all(photo.file.is_file() for photo in taken)


def test_a_long_strip_is_too_small_as_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, width in (("strip", 100), ("whole", 96)):
        Image.new("RGB", (width * 4, 32 * 4), "red").save(tmp_path / "photos" / f"{name}.png")
    found = scanned(tmp_path / "photos", tmp_path, CONFIG.model_copy(update={"near": 0}))
    assert [(one.name, one.reason, one.detail) for one in found.aside] == [("strip.png", "too small", "400x128")]
    (whole,) = found.photos
    with Image.open(whole.file) as kept:
        assert kept.size == (96, 32)


def test_order_and_choice_do_not_depend_on_threads(photos: Path, tmp_path: Path) -> None:
    one = scanned(photos, tmp_path / "one", CONFIG.model_copy(update={"threads": 1}))
    many = scanned(photos, tmp_path / "many", CONFIG.model_copy(update={"threads": 4}))
    assert [photo.digest for photo in one.photos] == [photo.digest for photo in many.photos]
    assert one.aside == many.aside


@pytest.mark.parametrize("make", [False, True])
def test_no_photos_are_an_error(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "photos").mkdir()
    with pytest.raises(ImageError, match="photos"):
        scanned(tmp_path / "photos", tmp_path / "work")


def test_a_folder_that_cannot_be_read_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refused(place: str) -> object:
        if Path(place).name == "deep":
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ImageError, match="deep: cannot be read"):
        scanned(photos, tmp_path)


def test_what_is_no_ordinary_file_is_counted(
    toy: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe, a link to a folder, links that lead nowhere, and a photo that is gone when it is looked at."""
    folder = tmp_path / "photos"
    folder.mkdir()
    next(iter(toy.bundled().values())).convert("RGB").save(folder / "good.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "linked").symlink_to(photos)
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    listed = scan_module.list_files
    monkeypatch.setattr(scan_module, "list_files", lambda *told: [*listed(*told), folder / "zz-gone.jpg"])
    for _ in range(2):  # from the journal, too
        found = scanned(folder, tmp_path / "work")
        assert [photo.name for photo in found.photos] == ["good.jpg"]
        assert {one.name: (one.reason, one.detail) for one in found.aside if one.reason == "no ordinary file"} == {
            "linked": ("no ordinary file", "a link to a folder"),
            "pipe.jpg": ("no ordinary file", ""),
        }
        lost = {one.name for one in found.aside if one.reason == "not readable"}
        assert lost == {"broken.jpg", "loop.jpg", "zz-gone.jpg"}


def test_a_name_that_is_no_text_is_told_all_the_same(toy: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    toy.scene(1).save(folder / "a.png")
    (folder / "b\udcff\n.png").write_bytes(b"x")
    found = scanned(folder, tmp_path / "work")
    assert [one.name for one in found.aside] == ["b\ufffd .png"]
    json.dumps(found.aside[0].detail).encode("utf-8")


# Words of strangers ---------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["caption", "subject"]), st.text(), min_size=1))
def test_data_is_one_line_that_gives_back_every_text_and_holds_nothing_of_a_template(values: dict[str, str]) -> None:
    line = as_data(values)
    assert json.loads(line) == values
    assert len(line.splitlines()) == 1
    assert not set("<>|[]`") & set(line)
    assert line.count("{") == line.count("}") == 1


@given(st.text())
@example("a \u200b b\u202e \n\x00c")
def test_a_tidy_text_is_one_line_of_printing_characters(text: str) -> None:
    tidied = tidy(text)
    assert tidied == tidy(tidied)
    assert len(tidied.splitlines()) <= 1
    assert tidied == tidied.strip()
    tidied.encode("utf-8")
    printable(text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
