"""Where and with what a run was made: machines told apart, sittings of an interrupted run put together."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import nopair
from nopair.errors import OutputError
from nopair.evaluation.studies import origin

INTEL = "processor : 0\ncpu family : 6\nmodel : 143\nmodel name : Intel(R) Xeon(R) Processor @ 2.10GHz\nflags : a b\n"
EPYC = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: other\n"


def test_processors_are_told_apart_even_if_they_have_one_name(tmp_path: Path) -> None:
    names = []
    for text in (INTEL, EPYC, EPYC.replace("25", "26"), "processor : 0\nFeatures : fp\n", "model name : AMD EPYC\n"):
        (tmp_path / "cpuinfo").write_text(text)
        names.append(origin.processor(tmp_path / "cpuinfo"))
    assert names[0] == "Intel(R) Xeon(R) Processor @ 2.10GHz (family 6 model 143)"
    assert names[1:3] == ["AMD EPYC (family 25 model 1)", "AMD EPYC (family 26 model 1)"]
    assert names[3].endswith(" CPU")
    assert names[4] == "AMD EPYC"
    assert origin.processor(tmp_path / "nowhere")


def test_a_machine_is_its_processor_or_its_gpu_with_threads_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(origin.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(origin.torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    torch = f"2 threads, torch {origin.torch.__version__}"
    assert origin.machine("cpu") == f"{origin.processor(Path('/proc/cpuinfo'))}, AVX512, {torch}"
    assert origin.machine("cuda:1") == f"GPU of cuda:1, {torch}"


def test_what_a_run_took_is_summed_over_its_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 4.0, 10.0, 12.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    for name, error in (("one", KeyboardInterrupt), ("two", None)):
        monkeypatch.setattr(origin, "machine", lambda device, name=name: f"{name}, {device}")
        monkeypatch.setattr(origin, "version", lambda: "0.1.0")
        try:
            with origin.sitting(tmp_path, "cpu"):
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
    found = origin.origin(tmp_path)
    assert (found["machine"], found["version"]) == ("one, cpu; two, cpu", "0.1.0")
    assert found["processor_seconds"] == 5.5


def test_what_a_killed_sitting_took_is_not_known(tmp_path: Path) -> None:
    with origin.sitting(tmp_path, "cpu"):
        during = json.loads((tmp_path / origin.SITTINGS).read_text())
    (tmp_path / origin.SITTINGS).write_text(json.dumps(during))
    with origin.sitting(tmp_path, "cpu"):
        pass
    assert origin.origin(tmp_path)["processor_seconds"] is None


def test_sittings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / origin.SITTINGS).write_text("[")
    with pytest.raises(OutputError, match=r"sittings\.json.*remove it"), origin.sitting(tmp_path, "cpu"):
        pass


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git to ask")
def test_in_a_checkout_the_version_has_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "nopair"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(nopair, "__file__", str(package / "__init__.py"))
    assert origin.version() == nopair.__version__, "installed"

    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    assert origin.version() == nopair.__version__, "nothing is committed"
    git("add", ".")
    git("commit", "-m", "x")
    revision = git("rev-parse", "--short", "HEAD")
    assert origin.version() == f"{nopair.__version__} ({revision})"
    (package / "__init__.py").write_text("1")
    assert origin.version() == f"{nopair.__version__} ({revision}-dirty)"
    monkeypatch.setenv("PATH", "")
    assert origin.version() == nopair.__version__, "no git to ask"


def test_dates_span_from_the_first_to_the_last() -> None:
    assert origin.span(["2026-11-27"] * 2) == "2026-11-27"
    assert origin.span(["2026-11-27", "2026-11-25", "2026-11-26"]) == "2026-11-25 to 2026-11-27"
