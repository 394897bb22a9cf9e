"""Broken photos are counted for a run as a whole: over its processes, and over stops."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nopair.data.broken import BROKEN, Broken, prepare
from nopair.data.tables import Table, open_table
from nopair.errors import DataError, ImageError, OutputError


def table(folder: Path, broken: tuple[int, ...] = ()) -> Table:
    """Six photos in a list, some of them broken."""
    lines = []
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        if number in broken:
            (folder / f"{number}.png").write_bytes(b"no image")
        words = {"instruction": "go", "caption": "a", "edited_caption": "b", "category": "add"}
        lines.append(json.dumps(words | {"image": f"{number}.png"}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return open_table(folder / "mine.jsonl")


def test_processes_count_together_and_each_photo_once(tmp_path: Path) -> None:
    first, second = (Broken(2, tmp_path / "run" / BROKEN) for _ in range(2))
    for one in (first, second, first):
        one.add(3, ImageError("3.png: broken"))
    second.add(7, ImageError("7.png: broken"))
    first.add(7, ImageError("7.png: broken"))
    with pytest.raises(DataError, match=r"3 photos cannot be read, the last: 9\.png.*data\.max_broken=3 or more"):
        first.add(9, ImageError("9.png: broken"))
    with pytest.raises(DataError, match="3 photos cannot be read"):
        second.add(3, ImageError("3.png: broken"))


def test_without_a_file_a_process_counts_alone() -> None:
    first, second = Broken(1), Broken(1)
    first.add(3, ImageError("3.png: broken"))
    second.add(4, ImageError("4.png: broken"))
    with pytest.raises(DataError, match="2 photos"):
        second.add(3, ImageError("3.png: broken"))


def test_a_resumed_run_goes_on_counting_and_forgets_what_was_mended(tmp_path: Path) -> None:
    photos = table(tmp_path, broken=(1, 2, 4))
    file = tmp_path / BROKEN
    prepare(file, photos, resumed=True)
    before = Broken(3, file)
    for row in (1, 2):
        before.add(row, ImageError(f"{row}.png: broken"))
    prepare(file, photos, resumed=True)
    after = Broken(2, file)
    with pytest.raises(DataError, match="3 photos"):
        after.add(4, ImageError("4.png: broken"))
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    prepare(file, photos, resumed=True)
    Broken(2, file).add(2, ImageError("2.png: broken"))
    prepare(file, photos, resumed=False)
    assert not file.exists()


@pytest.mark.parametrize("content", [b"x\n", b"{}\n", b"[1]\n", b'{"row": "a", "error": ""}\n', b"\xff\n"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / BROKEN).write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jsonl: cannot be read"):
        prepare(tmp_path / BROKEN, table(tmp_path), resumed=True)


def test_a_place_for_the_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    (tmp_path / BROKEN).mkdir()
    for file in (tmp_path / "run" / BROKEN, tmp_path / BROKEN):
        with pytest.raises(OutputError, match=r"broken\.jsonl: cannot be written \(.*\); choose another output"):
            prepare(file, table(tmp_path), resumed=False)


PROGRAM = """
import sys
from pathlib import Path
from nopair.data.broken import Broken
from nopair.errors import DataError, ImageError
mine, broken = int(sys.argv[2]), Broken(119, Path(sys.argv[1]))
sys.stdin.read(2)
try:
    for row in range(mine, 120, 3):
        broken.add(row, ImageError(f"{row}.png"))
    print("fewer")
except DataError:
    print("too many")
"""


def test_many_at_a_time_lose_no_line(tmp_path: Path) -> None:
    """Three processes find 120 photos, one more than may be: at least the last is told."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / BROKEN), str(mine)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
        )
        for mine in range(3)
    ]  # fmt: skip
    for one in runs:
        assert one.stdin is not None
        one.stdin.write("go")
        one.stdin.flush()
    said = [one.communicate()[0].strip() for one in runs]
    assert len((tmp_path / BROKEN).read_text().splitlines()) == 120
    assert "too many" in said
