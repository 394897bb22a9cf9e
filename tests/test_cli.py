"""The command line as a user meets it: what it says, what it exits with, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nopair.cli import main
from nopair.data.images import load_image, save_image
from nopair.errors import Interrupted, NopairError, TrainingError
from nopair.planning.cards import CARDS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`nopair ARGUMENTS` in this process: exit code, stdout, stderr."""
    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # `main` would set it, and for good

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nopair", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[Any]]:
    """Replace a function that a command calls; returns the list its calls are written to."""

    def replace(module: str, name: str, error: BaseException | None = None) -> list[Any]:
        calls: list[Any] = []

        def function(*arguments: object, **options: object) -> None:
            calls.append((arguments, options))
            if error is not None:
                raise error

        fake = types.ModuleType(module)
        fake.__dict__[name] = function
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return replace


@pytest.fixture
def toy_editor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`Editor.load` gives a toy; returns the list of what was asked for."""
    from nopair.backbones.fake import ToyBackbone
    from nopair.editor import Editor, Settings

    class FileToy(ToyBackbone):
        def save(self, folder: Path) -> None:
            raise AssertionError("nothing here saves a model")

        def to(self, device: torch.device | str) -> "FileToy":
            return self

    asked: list[str] = []
    settings = Settings(steps=2, shift=3.0, height=16, width=16, questions="v1")

    def load(cls: type[Editor], model: str, device: torch.device, dtype: torch.dtype | None, bits: Any) -> Editor:
        asked.append(model if dtype is None else f"{model} in {dtype}")
        return Editor(FileToy.build(seed=1), settings)

    monkeypatch.setattr(Editor, "load", classmethod(load))
    return asked


# Help and errors ------------------------------------------------------------------------------------------------------


def test_help_tells_a_stranger_where_to_begin(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for word in (
        "demo",
        "edit",
        "train",
        "evaluate",
        "oracle",
        "judge",
        "tiny",
        "--debug",
        "without a single before/after pair",
    ):
        assert word in out


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "edit",
        "train",
        "evaluate",
        "compare",
        "oracle",
        "import",
        "export",
        "judge",
        "judge audit",
        "tiny",
        "tiny build",
    ],
)
def test_every_command_has_help(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage: nopair" in out


def test_bits_of_an_editor_need_a_gpu(run: Run, tmp_path: Path) -> None:
    save_image(torch.rand(3, 8, 8), tmp_path / "a.png")
    arguments = ("edit", str(tmp_path / "a.png"), "go", "-o", str(tmp_path / "b.png"), "--device", "cpu", "--bits", "8")
    code, _, err = run(*arguments)
    assert (code, err) == (2, "error: bits 8 quantises on a CUDA GPU, and the device is cpu; leave bits out\n")


def test_the_help_of_plan_lists_the_known_cards(run: Run) -> None:
    code, out, _ = run("plan", "--help")
    assert code == 0
    assert all(name in out for name in CARDS)


def test_version(run: Run) -> None:
    from nopair import __version__

    assert run("--version") == (0, f"nopair {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["edti"],
        ["edit"],
        ["edit", "a.png", "x", "--seed", "-1"],
        ["judge", "audit", "no", "--seed", str(2**63)],
        ["train", "demo", "--resume", "oldest"],
    ],
)
def test_wrong_usage_exits_with_2_and_a_hint(run: Run, arguments: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage: nopair" in err


_LIGHT = (
    "import sys; sys.argv = ['nopair', {}]\nimport atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
)


@pytest.mark.parametrize(
    ("arguments", "code"), [("'--help'", 0), ("'edit', 'no.png', 'go', '-o', 'a.png'", 2), ("'edit', '--help'", 0)]
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: str, code: int) -> None:
    program = _LIGHT.format(arguments) + "from nopair.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (code, "False")


def test_python_m_nopair(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nopair", "edit", "no.png", "make it red", "-o", "out.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (
        2,
        "",
        "error: no.png: no such image; check the path\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), [(NopairError("it is\nwrong"), 2), (TrainingError("it is\nwrong"), 3)])
def test_an_error_of_the_users_is_one_line(run: Run, stub: Any, error: NopairError, code: int) -> None:
    stub("nopair.evaluation.demo", "demo", error)
    assert run("demo") == (code, "", "error: it is wrong\n")
    for arguments in (["--debug", "demo"], ["demo", "--debug"]):
        found, _, err = run(*arguments)
        assert found == code
        assert err.startswith("Traceback")
        assert err.endswith("error: it is wrong\n")


def test_a_bug_is_not_swallowed(run: Run, stub: Any) -> None:
    stub("nopair.evaluation.demo", "demo", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("demo")


def test_a_run_that_saved_and_stopped(run: Run, stub: Any) -> None:
    stub("nopair.evaluation.demo", "demo", Interrupted(143))
    assert run("demo") == (143, "", "stopped by signal 15\n")
    stub("nopair.evaluation.demo", "demo", Interrupted(130))
    assert run("demo")[0] == 130


_SLEEPER = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
from pathlib import Path
from nopair.data.files import folder_atomic

def demo(output, seed):
    with folder_atomic(Path("out"), "marker") as part:
        (part / "marker").write_text("half")
        print("running", flush=True)
        time.sleep(60)

sys.modules["nopair.evaluation.demo"] = types.SimpleNamespace(demo=demo)
sys.argv = ["nopair", "demo"]
from nopair.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", _SLEEPER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


# Commands that only call ----------------------------------------------------------------------------------------------


def test_demo(run: Run, stub: Any) -> None:
    calls = stub("nopair.evaluation.demo", "demo")
    assert run("demo")[0] == run("demo", "-o", "x", "--seed", "3")[0] == 0
    assert calls == [((Path("runs/demo"), 0), {}), ((Path("x"), 3), {})]


def test_train(run: Run, stub: Any) -> None:
    calls = stub("nopair.training.run", "train")
    folder = "it's a: folder #1"
    assert run("train", "demo", "npedit.lr=0.125", "seed=9", "--resume", "latest", "--output", folder)[0] == 0
    assert run("train", "demo", "--device", "cuda:1")[0] == 0
    [((changed,), resumed), ((plain,), fresh)] = calls
    assert (changed.npedit.lr, changed.seed, changed.output) == (0.125, 9, folder)
    assert plain.output != folder
    assert (resumed, fresh) == ({"resume": True, "device": "auto"}, {"resume": False, "device": "cuda:1"})


@pytest.mark.parametrize("arguments", [["dmeo"], ["demo", "npedit.lrr=1"], ["no/such.yaml"]])
def test_train_refuses_what_it_does_not_know(run: Run, stub: Any, arguments: list[str]) -> None:
    calls = stub("nopair.training.run", "train")
    code, _, err = run("train", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not calls


def test_tiny_build(run: Run, stub: Any, tmp_path: Path) -> None:
    from nopair.weights import packaged

    calls = stub("nopair.tiny.build", "build")
    assert run("tiny", "build", "judge", "-o", tmp_path, "--steps", "15")[0] == run("tiny", "build")[0] == 0
    assert calls == [(("judge", tmp_path, 15, None), {}), (("all", packaged(), None, None), {})]
    assert run("tiny", "build", "judge-64")[0] == 0
    assert calls[2:] == [(("judge-64", packaged(), None, None), {})]
    assert run("tiny", "build", "jugde")[0] == 2


def test_oracle_and_evaluate(run: Run, stub: Any) -> None:
    calls = stub("nopair.evaluation.world", "print_oracle")
    assert run("oracle", "--count", "5")[0] == 0
    assert calls == [((5,), {})]
    calls = stub("nopair.evaluation.world", "evaluate")
    assert run("evaluate", "--model", "m", "--per-category", "2", "--seed", "1", "-o", "out")[0] == 0
    assert run("evaluate")[0] == 0
    assert run("evaluate", "--judge", "mine", "--dtype", "bf16")[0] == 0
    assert calls == [
        (("m", 2, 1, Path("out"), "auto", "auto"), {}),
        (("tiny:editor", 32, 0, Path("runs/evaluate"), "auto", "auto"), {}),
        (("tiny:editor", 32, 0, Path("runs/evaluate"), "auto", "bf16"), {"judge": "mine"}),
    ]


def test_evaluate_on_a_benchmark(run: Run, stub: Any) -> None:
    calls = stub("nopair.evaluation.scoreboard.command", "evaluate_benchmark")
    sys.modules["nopair.evaluation.scoreboard.command"].__dict__["Request"] = dict
    options = (
        "--benchmark",
        "gedit:g",
        "--editor",
        "nopair:a",
        "--editor",
        "outputs:b",
        "--judge",
        "local:m",
    )
    more = ("--language", "en", "--per-category", "3", "--rubric", "r.py", "--dry-run", "-o", "out", "--device", "cpu")
    assert run("evaluate", *options, *more)[0] == 0
    assert run("evaluate", "--benchmark", "folder:f", "--model", "m", "--seed", "4", "--scorer", "similarity")[0] == 0
    first, second = (arguments[0] for arguments, _ in calls)
    assert first == {
        "benchmark": "gedit:g",
        "editors": ("nopair:a", "outputs:b"),
        "judges": ("local:m",),
        "features": (),
        "scorer": None,
        "rubric": Path("r.py"),
        "languages": ("en",),
        "per_category": 3,
        "output": Path("out"),
        "device": "cpu",
        "dry_run": True,
        "command": f"nopair evaluate {' '.join([*options, *more])}",
    }
    assert second["editors"] == ("nopair:m,seed=4,dtype=auto",)
    code, _, err = run("evaluate", *options, "--dtype", "bf16")
    assert (code, "nopair:DIR,dtype=bf16" in err) == (2, True)
    for given, why in (("--model", "--editor nopair:0, too"), ("--seed", "nopair:DIR,seed=0")):
        code, _, err = run("evaluate", *options, given, "0")
        assert (code, why in err) == (2, True), "also where it is what it would be without"
    assert len(calls) == 2
    assert "once" in run("evaluate", "--judge", "x", "--judge", "y")[2]
    code, _, err = run("evaluate", "--judge", "local:x")
    assert code == 2
    assert "--benchmark" in err


def test_compare(run: Run, stub: Any) -> None:
    calls = stub("nopair.evaluation.scoreboard.comparison", "compare_runs")
    assert run("compare", "a", "b:mine", "--json")[0] == 0
    assert calls == [(("a", "b:mine"), {"as_json": True})]


def test_judge_audit(run: Run, stub: Any) -> None:
    class Values:
        def __init__(self, *values: object) -> None:
            self.values = values

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Values) and type(self) is type(other) and self.values == other.values

        __hash__ = None

    class Settings(Values): ...

    class Place(Values): ...

    calls = stub("nopair.evaluation.audit.command", "audit")
    sys.modules["nopair.evaluation.audit.command"].__dict__.update(Settings=Settings, Place=Place)
    assert run("judge", "audit", "tiny:judge")[0] == 0
    options = ("--cases", "c", "--base", "b", "--per-category", "2", "--starts", "0", "--steps", "3", "--batch", "4")
    where = ("--device", "cuda:1", "--dtype", "bfloat16", "--bits", "4")
    assert run("judge", "audit", "j", *options, *where, "--seed", "5", "-o", "out", "--json")[0] == 0
    assert run("judge", "audit", "j", "--bits", "3")[0] == run("judge", "audit", "j", "--dtype", "int8")[0] == 2
    code, _, said = run("judge", "audit", "j", "--cases", "c", "--categories", "free-form")
    assert (code, "--categories is for the shapes world" in said) == (2, True)
    first = Settings(0, 16, 8, 20, 16), Path("runs/audit"), Place("auto", "float32", None)
    second = Settings(5, 2, 0, 3, 4), Path("out"), Place("cuda:1", "bfloat16", 4)
    assert calls == [
        (("tiny:judge", None, None, *first), {"as_json": False}),
        (("j", Path("c"), "b", *second), {"as_json": True}),
    ]


def test_import_and_export(run: Run, stub: Any) -> None:
    calls = stub("nopair.exchange", "import_editor")
    assert run("import", "npedit.pt", "--base", "z", "-o", "out") == (0, "the editor is in out\n", "")
    assert run("import", "npedit.pt", "-o", "out")[0] == run("import", "--base", "z", "-o", "out")[0] == 2
    assert calls == [((Path("npedit.pt"), Path("z"), Path("out"), "bf16"), {})]
    calls = stub("nopair.exchange", "export_editor")
    assert run("export", "tiny:editor", "-o", "out", "--dtype", "fp32") == (0, "the copy is in out\n", "")
    assert run("export", "tiny:editor")[0] == run("export", "m", "-o", "out", "--dtype", "int8")[0] == 2
    assert calls == [(("tiny:editor", Path("out"), "fp32"), {})]


# edit -----------------------------------------------------------------------------------------------------------------

NOTE = "note: tiny:editor knows drawn scenes of coloured shapes and no photos; --model names another\n"
"""What the shipped editor, and no other, is announced with."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "Fotos"
    folder.mkdir()
    for name, size in (("a.png", (20, 30)), ("b.webp", (16, 16)), ("ç.jpg", (9, 40))):
        save_image(torch.rand(3, *size), folder / name)
    return folder


def test_edit_an_image(run: Run, toy_editor: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run("edit", photos / "a.png", "make it red", "-o", out) == (0, f"{out}\n", NOTE)
    first = load_image(out)
    assert first.shape == (3, 20, 30)
    assert run("edit", photos / "a.png", "make it red", "-o", out, "--model", "mine", "--seed", "1")[::2] == (0, "")
    assert not torch.equal(load_image(out), first)
    assert run("edit", photos / "a.png", "make it red", "-o", out, "--steps", "5")[0] == 0
    assert not torch.equal(load_image(out), first)
    assert run("edit", photos / "a.png", "make it red", "-o", out)[0] == 0
    assert torch.equal(load_image(out), first)
    assert run("edit", photos / "a.png", "make it red", "-o", out, "--dtype", "bf16")[0] == 0
    assert run("edit", photos / "a.png", "make it red", "-o", out, "--dtype", "int8")[0] == 2
    assert toy_editor == ["tiny:editor", "mine", "tiny:editor", "tiny:editor", "tiny:editor in torch.bfloat16"]


def test_edit_a_folder(run: Run, toy_editor: list[str], photos: Path, tmp_path: Path) -> None:
    (photos / "d.HEIC").write_bytes(b"x")
    code, out, err = run("edit", photos, "make it red", "-o", tmp_path / "out", "--batch", "2")
    left_out = "note: left out 1 files that do not end in .png, .jpg, .jpeg, .webp: .HEIC\n"
    assert (code, err) == (0, left_out + NOTE)
    assert out.splitlines() == [str(tmp_path / "out" / name) for name in ("a.png", "b.webp", "ç.jpg")]
    assert run("edit", photos / "a.png", "make it red", "-o", tmp_path / "a.png")[0] == 0
    alone, among = load_image(tmp_path / "a.png"), load_image(tmp_path / "out" / "a.png")
    torch.testing.assert_close(alone, among, atol=1.01 / 255, rtol=0)
    assert len(toy_editor) == 2


def test_edit_a_job_file_with_errors(run: Run, toy_editor: list[str], photos: Path) -> None:
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:700])
    jobs = [
        {"image": "a.png", "instruction": "make it red", "output": "1.png"},
        {"image": "cut.png", "instruction": "make it red", "output": "2.png"},
        {"image": "a.png", "instruction": "", "output": "3.png"},
        {"image": "b.webp", "instruction": "make it red", "output": "4.jpg", "seed": 4},
    ]
    source = photos / "jobs.jsonl"
    source.write_text("\n".join(map(json.dumps, jobs)))
    code, out, err = run("edit", source)
    assert code == 2
    assert out.splitlines() == [str(photos / "1.png"), str(photos / "4.jpg")]
    empty, cut, note = err.splitlines()
    assert note + "\n" == NOTE
    assert empty.startswith(f"error: {source}, line 3: the instruction is empty")
    assert cut.startswith(f"error: {source}, line 2: {photos / 'cut.png'}: damaged or cut short")
    assert not (photos / "2.png").exists()
    assert not (photos / "3.png").exists()
    assert len(toy_editor) == 1


def test_edit_a_job_file_without_a_good_line_loads_no_model(run: Run, toy_editor: list[str], photos: Path) -> None:
    (photos / "jobs.jsonl").write_text("{}\n[]\n")
    code, out, err = run("edit", photos / "jobs.jsonl")
    assert (code, out, err.count("error: ")) == (2, "", 2)
    assert not toy_editor


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.png", "go", "-o", "out.png"], "no such image"),
        (["Fotos/a.png", "", "-o", "out.png"], "instruction is empty"),
        (["Fotos/a.png", "go"], "-o"),
        (["Fotos/a.png", "-o", "out.png"], "no instruction"),
        (["Fotos/a.png", "go", "-o", "out.txt"], "image format"),
        (["Fotos/a.png", "go", "-o", "no/out.png"], "create it first"),
        (["Fotos/a.png", "go", "-o", "Fotos"], "is a folder"),
        (["Fotos/cut.png", "go", "-o", "out.png"], "damaged or cut short"),
        (["Fotos/text.png", "go", "-o", "out.png"], "not a readable PNG, JPEG or WebP"),
        (["Fotos", "go", "-o", "Fotos/a.png"], "cannot create this folder"),
    ],
)
def test_edit_says_what_is_wrong_and_leaves_nothing(
    run: Run,
    toy_editor: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:700])
    (photos / "text.png").write_text("hello")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("edit", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_edit_with_a_model_that_is_not_there(run: Run, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("edit", photos / "a.png", "go", "-o", tmp_path / "o.png", "--model", tmp_path / "no")
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'no'}: no such model folder; check the path (tiny:base, tiny:judge, ")
    assert not (tmp_path / "o.png").exists()


def test_names_of_files_need_not_be_text(run: Run, toy_editor: list[str], photos: Path) -> None:
    strange = photos / os.fsdecode(b"\xff\xfe.png")
    (photos / "a.png").rename(strange)
    assert run("edit", strange, "go", "-o", strange)[0] == 0
    code, _, err = run("edit", photos / os.fsdecode(b"\xff.png"), "go", "-o", strange)
    assert code == 2
    assert "no such image" in err
    assert len(toy_editor) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "-o", "a.txt"), "a.txt"),
        (("demo", "-o", "no/such/folder/a.png"), "no/such/folder"),
        (("demo", "base.path=missing", "-o", "a.png"), "missing"),
        (("demo", "npedit.guidence=2", "-o", "a.png"), "npedit.guidance"),
        (("no-such-recipe", "-o", "a.png"), "no-such-recipe"),
    ],
)
def test_a_preview_that_cannot_be_drawn_is_one_clear_line(
    run: Run, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run("preview", *arguments, "--count", 1, "--steps", 1)
    assert code in (2, 3)
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
