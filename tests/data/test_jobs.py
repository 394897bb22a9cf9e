"""What to edit: an image, a folder, a job file; and everything that can be wrong with them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.data.jobs import Job, left_out, read_jobs
from nopair.errors import ImageError, InstructionError, NopairError, OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images (never opened here), and what is not one."""
    folder = tmp_path / "in"
    (folder / "inner.png").mkdir(parents=True)
    for name in ("b.JPG", "ä.webp", "notes.txt", "._b.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def test_one_image(folder: Path, tmp_path: Path) -> None:
    jobs, failures = read_jobs(folder / "b.JPG", "make it red", tmp_path / "out.png", 7)
    assert jobs == [Job(folder / "b.JPG", "make it red", tmp_path / "out.png", 7)]
    assert not failures


def test_a_folder_gives_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    jobs, failures = read_jobs(folder, "make it red", out, 7)
    assert [(job.image.name, job.output, job.seed) for job in jobs] == [
        ("b.JPG", out / "b.JPG", 7),
        ("ä.webp", out / "ä.webp", 7),
    ]
    assert [str(failure) for failure in failures] == [
        f"{folder / 'inner.png'}: is a folder, not an image; name a file in it"
    ]
    assert out.is_dir()


def _lines(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_job_file(folder: Path, tmp_path: Path) -> None:
    one = {"image": "b.JPG", "instruction": "make it red", "output": "ü.png"}
    source = _lines(folder / "jobs.jsonl", "\ufeff" + json.dumps(one), "", {**one, "output": "2.png", "seed": 3}, "")
    jobs, failures = read_jobs(source, None, None, 7)
    assert not failures
    assert [(job.image, job.output, job.seed) for job in jobs] == [
        (folder / "b.JPG", folder / "ü.png", 7),
        (folder / "b.JPG", folder / "2.png", 3),
    ]
    jobs, _ = read_jobs(source, None, tmp_path / "made", 7)
    assert [job.output.parent for job in jobs] == [tmp_path / "made"] * 2


GOOD = {"image": "b.JPG", "instruction": "make it red", "output": "1.png"}


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("{", InstructionError, "not JSON"),
        ("[1]", InstructionError, "not a JSON object"),
        ("[" * 100_000, InstructionError, "not JSON"),
        ({**GOOD, "instruction": "  "}, InstructionError, "the instruction is empty"),
        ({**GOOD, "instruction": 3}, InstructionError, "instruction: input should be a valid string"),
        ({**GOOD, "sede": 3}, InstructionError, "sede: extra inputs"),
        ({**GOOD, "seed": -1}, InstructionError, "seed: "),
        ({**GOOD, "seed": "1"}, InstructionError, "seed: "),
        ({"image": "b.JPG", "output": "1.png"}, InstructionError, "instruction: field required"),
        ({**GOOD, "image": "no.png"}, ImageError, "no such image"),
        ({**GOOD, "image": "\0"}, ImageError, "null byte"),
        ({**GOOD, "output": "1.gif"}, OutputError, "image format"),
        ({**GOOD, "output": "no/1.png"}, OutputError, "create it first"),
        ({**GOOD, "output": "0.png"}, OutputError, "output of another job"),
        ({**GOOD, "output": "inner.png/../0.png"}, OutputError, "output of another job"),
        ({**GOOD, "image": "was.png"}, ImageError, "was.png: is the output of another job"),
        ({**GOOD, "instruction": "go \ud800"}, InstructionError, "'go \\ud800' holds what is no text"),
        ({**GOOD, "image": "\ud800.png"}, InstructionError, "image: '\\ud800.png' holds what is no text"),
        ({**GOOD, "output": "\ud800.png"}, InstructionError, "output: '\\ud800.png' holds what is no text"),
    ],
)
def test_a_bad_line_is_told_and_the_others_go_on(
    folder: Path, line: object, kind: type[NopairError], said: str
) -> None:
    (folder / "was.png").write_bytes(b"x")
    others = [{**GOOD, "output": name} for name in ("0.png", "2.png", "was.png")]
    source = _lines(folder / "jobs.jsonl", others[0], line, *others[1:])
    jobs, failures = read_jobs(source, None, None, 0)
    assert [job.output.name for job in jobs] == ["0.png", "2.png", "was.png"]
    [failure] = failures
    assert isinstance(failure.error, kind)
    assert said in str(failure)
    assert str(failure).startswith(f"{source}, line 2: ")
    assert "\n" not in str(failure)


def test_an_image_may_be_replaced_by_its_own_job(folder: Path) -> None:
    jobs, failures = read_jobs(_lines(folder / "jobs.jsonl", {**GOOD, "output": "b.JPG"}), None, None, 0)
    assert [job.output for job in jobs] == [folder / "b.JPG"]
    assert not failures


def test_a_folder_of_photos_is_not_replaced(folder: Path) -> None:
    for output in (folder, folder / "inner.png" / ".."):
        with pytest.raises(OutputError, match="is the folder of the photos, which would be replaced"):
            read_jobs(folder, "go", output, 0)


def test_what_is_left_out_of_a_folder_is_counted(folder: Path) -> None:
    assert left_out(folder) == "left out 1 files that do not end in .png, .jpg, .jpeg, .webp: .txt"
    for name in ("c.HEIC", "d.HEIC", "README"):
        (folder / name).write_bytes(b"x")
    assert left_out(folder).startswith("left out 4 files")
    assert left_out(folder).endswith(": .HEIC, .txt, README")
    assert left_out(folder / "b.JPG") == left_out(folder / "inner.png") == ""


@given(line=st.text(max_size=60))
def test_any_text_is_a_job_or_a_failure(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    source = tmp_path_factory.getbasetemp() / "any.jsonl"
    source.write_text(f"{{}}\n{line}", encoding="utf-8", errors="replace")
    jobs, failures = read_jobs(source, None, None, 0)
    assert not jobs
    assert failures


def test_calls_that_cannot_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    jobs = _lines(folder / "jobs.jsonl", GOOD)
    image, out = folder / "b.JPG", tmp_path / "out.png"
    for source, instruction, output, kind, said in [
        (image, "", out, InstructionError, "empty"),
        (image, " \n\t", out, InstructionError, "empty"),
        (image, "go \udcff", out, InstructionError, "no text"),
        (image, None, out, InstructionError, "no instruction"),
        (image, "go", None, OutputError, "-o"),
        (image, "go", tmp_path / "out.doc", OutputError, "image format"),
        (image, "go", tmp_path, OutputError, "is a folder"),
        (tmp_path / "no.png", "go", out, ImageError, "no such image"),
        (tmp_path / ("x" * 300), "go", out, ImageError, "File name too long"),
        (tmp_path / "empty", "go", tmp_path / "o", ImageError, "no image in this folder"),
        (folder, "go", image, OutputError, "cannot create this folder"),
        (folder, " ", tmp_path / "o", InstructionError, "empty"),
        (jobs, "go", None, InstructionError, "leave out 'go'"),
        (jobs, None, image, OutputError, "cannot create this folder"),
        (tmp_path / "no.jsonl", None, None, InstructionError, "no such job file"),
        (tmp_path / "binary.jsonl", None, None, InstructionError, "UTF-8"),
        (_lines(tmp_path / "blank.jsonl", "", " "), None, None, InstructionError, "holds no jobs"),
    ]:
        with pytest.raises(kind) as error:
            read_jobs(source, instruction, output, 0)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert not out.exists()
    assert not (tmp_path / "o").exists()
