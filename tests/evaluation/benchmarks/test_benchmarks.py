"""Benchmarks in the schema that their makers publish, whole and broken."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from nopair.data.images import load_image
from nopair.errors import ConfigError, DataError
from nopair.evaluation.benchmarks.base import Benchmark
from nopair.evaluation.benchmarks.load import load_benchmark

CLASSES = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
dog2,dog
nobody,toy

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token)
]
"""


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", (24, 16), colour).save(buffer, kind)
    return buffer.getvalue()


def gedit_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task_type": "color_alter",
        "key": "00ab",
        "instruction": "make the sky pink",
        "instruction_language": "en",
        "input_image": {"bytes": picture((200, 0, 0)), "path": None},
        "input_image_raw": {"bytes": picture((201, 0, 0)), "path": None},
        "Intersection_exist": True,
    }
    return row | changes


@pytest.fixture
def gedit(tmp_path: Path) -> Callable[..., Benchmark]:
    """Rows as a parquet file of the hub's schema, read."""
    features = Features(
        {name: Value("string") for name in ("task_type", "key", "instruction", "instruction_language")}
        | {name: Image(decode=False) for name in ("input_image", "input_image_raw")}
        | {"Intersection_exist": Value("bool")}
    )

    def read(*rows: dict[str, Any]) -> Benchmark:
        (tmp_path / "bench" / "data").mkdir(parents=True, exist_ok=True)
        data = {name: [row[name] for row in rows] for name in features}
        Dataset.from_dict(data, features).to_parquet(tmp_path / "bench" / "data" / "train-00000-of-00001.parquet")
        return load_benchmark(f"gedit:{tmp_path / 'bench'}", tmp_path / "work")

    return read


def test_gedit_is_read_in_its_schema(gedit: Callable[..., Benchmark], tmp_path: Path) -> None:
    chinese = gedit_row(instruction="把天空变成粉色", instruction_language="cn", Intersection_exist=False)
    jpeg = gedit_row(key="00ac", input_image={"bytes": picture((0, 0, 250), "JPEG"), "path": "a.jpg"})
    bench = gedit(gedit_row(), chinese, jpeg)
    assert [item.place for item in bench.items] == [
        "fullset/color_alter/en/00ab",
        "fullset/color_alter/cn/00ab",
        "fullset/color_alter/en/00ac",
    ]
    assert [item.in_intersection for item in bench.items] == [True, False, True]
    assert bench.items[1].instruction == "把天空变成粉色"
    assert bench.items[0].source == tmp_path / "work" / "fullset/color_alter/en/00ab_SRCIMG.png"
    assert load_image(bench.items[0].source)[0, 0, 0] == pytest.approx(200 / 255), "input_image, not input_image_raw"
    assert not bench.left_out
    assert not list((tmp_path / "work").rglob("*.raw"))
    assert [item.place for item in bench.only(frozenset({"cn"}), None).items] == ["fullset/color_alter/cn/00ab"]
    assert len(bench.only(frozenset(), 1).items) == 2
    with pytest.raises(DataError, match="it has cn, en"):
        bench.only(frozenset({"fr"}), None)


def test_another_image_under_an_old_name_is_extracted_anew(gedit: Callable[..., Benchmark], tmp_path: Path) -> None:
    def red(*rows: dict[str, Any]) -> float:
        return round(float(load_image(gedit(*rows).items[0].source)[0, 0, 0]) * 255)

    assert red(gedit_row()) == 200
    file = tmp_path / "work/fullset/color_alter/en/00ab_SRCIMG.png"
    before = file.stat().st_mtime_ns
    assert red(gedit_row()) == 200
    assert file.stat().st_mtime_ns == before, "the same image is extracted once"
    other = gedit_row(input_image={"bytes": picture((90, 0, 0)), "path": None})
    assert red(gedit_row(), other) == 200, "the first of a name counts"
    assert red(other) == 90
    file.with_suffix(".sha256").unlink()
    assert red(gedit_row()) == 200, "an image of which nothing is told is extracted anew"


def test_what_is_broken_in_gedit_is_counted(gedit: Callable[..., Benchmark], tmp_path: Path) -> None:
    bench = gedit(
        gedit_row(),
        gedit_row(instruction="again"),
        gedit_row(key="b", input_image={"bytes": picture((0, 0, 0))[:40], "path": None}),
        gedit_row(key="c", input_image=None),
        gedit_row(key="../d"),
        gedit_row(key=".."),
        gedit_row(key="e", instruction=" "),
        gedit_row(key="f", task_type="../../../evil"),
        gedit_row(key="g" * 260),
    )
    assert not list(tmp_path.parent.rglob("f_SRCIMG.png")), "nothing is written for what is left out"
    assert [item.instruction for item in bench.items] == ["make the sky pink"]
    assert [one.why.split(";")[0].split(": ")[-1] for one in bench.left_out] == [
        "is there twice",
        bench.left_out[1].why.split(";")[0].split(": ")[-1],
        "has no input_image",
        "'../d' cannot be the name of a file",
        "'..' cannot be the name of a file",
        "has no instruction",
        "'../../../evil' cannot be the name of a file",
        f"'{'g' * 120}' cannot be the name of a file",
    ]
    assert "export it again" in bench.left_out[1].why


def test_gedit_needs_its_files_and_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fetch it with: hf download stepfun-ai/GEdit-Bench"):
        load_benchmark(f"gedit:{tmp_path / 'no'}", tmp_path)
    Dataset.from_dict({"key": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column task_type is missing"):
        load_benchmark(f"gedit:{tmp_path}", tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match="cannot be read"):
        load_benchmark(f"gedit:{tmp_path}", tmp_path)


def test_imgedit_is_read_in_its_schema(tmp_path: Path) -> None:
    (tmp_path / "photos" / "animal").mkdir(parents=True)
    (tmp_path / "photos" / "animal" / "1.jpg").write_bytes(picture((0, 0, 0), "JPEG"))
    entry = '{"id": "animal/1.jpg", "prompt": "Add a hat.", "edit_type": "add"}'
    (tmp_path / "basic_edit.json").write_text(
        f'{{"1082": {entry}, "1082": {entry}, "7": {{"id": "animal/2.jpg", "prompt": "x", "edit_type": "style"}},'
        ' "8": {"id": 3}, "9": []}'
    )
    bench = load_benchmark(f"imgedit:{tmp_path},images={tmp_path / 'photos'}", tmp_path)
    assert [(item.place, item.category, item.instruction) for item in bench.items] == [("1082", "add", "Add a hat.")]
    assert [one.where for one in bench.left_out] == ["1082", "7", "key 8", "key 9"]
    with pytest.raises(DataError, match="holds no usable item of imgedit"):
        load_benchmark(f"imgedit:{tmp_path}", tmp_path)
    for text, why in (("{", "is not JSON"), ("[1]", "expected an object"), ('"a"', "expected an object")):
        (tmp_path / "basic_edit.json").write_text(text)
        with pytest.raises(DataError, match=why):
            load_benchmark(f"imgedit:{tmp_path}", tmp_path)


def test_dreambooth_is_read_in_its_schema(tmp_path: Path) -> None:
    (tmp_path / "prompts_and_classes.txt").write_text(CLASSES)
    for subject in ("backpack", "bear_plushie", "dog2"):
        (tmp_path / subject).mkdir()
        for name in ("00.jpg", "03.jpg"):
            (tmp_path / subject / name).write_bytes(picture((9, 9, 9), "JPEG"))
    bench = load_benchmark(f"dreambooth:{tmp_path}", tmp_path)
    assert [(item.place, item.caption) for item in bench.items] == [
        ("backpack/00", "a backpack in the jungle"),
        ("backpack/01", "a cube shaped backpack"),
        ("bear_plushie/00", "a stuffed animal in the jungle"),
        ("bear_plushie/01", "a cube shaped stuffed animal"),
        ("dog2/00", "a dog in the jungle"),
        ("dog2/01", "a dog wearing a red hat"),
        ("dog2/02", "a dog in a chef outfit"),
    ]
    assert bench.items[0].source.name == "00.jpg"
    assert [path.name for path in bench.items[0].subject_images] == ["00.jpg", "03.jpg"]
    assert [one.where for one in bench.left_out] == ["subject nobody"]
    (tmp_path / "prompts_and_classes.txt").write_text("Classes\na,b\n")
    with pytest.raises(DataError, match="two lists of prompts"):
        load_benchmark(f"dreambooth:{tmp_path}", tmp_path)


def test_lines_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture((1, 2, 3)))
    good = {"image": "a.png", "instruction": "add a hat"}
    rows = [
        good,
        good | {"key": "x", "category": "add", "language": "en", "caption": "a man in a hat"},
        good | {"key": "x", "category": "add", "language": "en"},
        good | {"imag": 1},
        {"image": "a.png"},
        good | {"image": "b.png"},
        good | {"key": "a/../../b"},
    ]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{\n\n")
    bench = load_benchmark(f"jsonl:{tmp_path / 'edits.jsonl'}", tmp_path)
    assert [item.place for item in bench.items] == ["edit/00001", "add/en/x"]
    assert len(bench.left_out) == 6
    (tmp_path / "edits.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no usable item"):
        load_benchmark(f"jsonl:{tmp_path / 'edits.jsonl'}", tmp_path)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "add").mkdir()
    for name in ("a.png", "add/b.png", "c.png"):
        (tmp_path / name).write_bytes(picture((1, 2, 3)))
    (tmp_path / "a.txt").write_text("make it red\n")
    (tmp_path / "add" / "b.txt").write_text("add a hat")
    bench = load_benchmark(f"folder:{tmp_path}", tmp_path)
    assert [(item.place, item.instruction) for item in bench.items] == [
        ("edit/a", "make it red"),
        ("add/b", "add a hat"),
    ]
    assert [one.where for one in bench.left_out] == ["c.png"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("coco:x", "expected one of gedit:PLACE"),
        ("gedit", "expected one of"),
        ("gedit: ", "expected one of"),
        ("imgedit:x,image=y", "did you mean images"),
        ("gedit:x,a=1", "it takes none"),
        ("imgedit:x,list=a,list=b", "given twice"),
    ],
)
def test_a_benchmark_that_is_none(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        load_benchmark(text, tmp_path)
