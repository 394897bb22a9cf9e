"""`nopair tiny build`: every part is built for two steps, goes on where it was stopped, and loads in stock
libraries."""

import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from nopair.backbones.folder import load_model
from nopair.backbones.zimage import ZImageBackbone
from nopair.errors import ConfigError, Interrupted, ModelError, OutputError
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.tiny.build import RUNS, _editor_recipe, _Order, _vae, build
from nopair.tiny.cards import judge_tables
from nopair.tiny.judge import CONTINUED, JudgePhase
from nopair.tiny.quality import JudgeQuality
from nopair.tiny.vae import VaeSettings
from nopair.training import loop
from nopair.training.signals import StopRequest
from nopair.weights import PARTS, packaged

FILE = "model.safetensors"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("base_card", "judge_card", "editor_card"):
        monkeypatch.setattr(f"nopair.tiny.build.{name}", lambda *_: "card\n")
    return tmp_path


def the_run(output: Path, name: str) -> Path:
    """The folder of the only run of that part."""
    (folder,) = (path for path in (output / "runs").iterdir() if path.name[:-9] == name)
    return folder


def test_all_parts_build_and_load_in_stock_libraries(workplace: Path) -> None:
    output = workplace / "weights"
    build("all", output, 2)
    assert sorted(path.name for path in output.iterdir()) == [
        "base",
        "editor",
        "judge",
        "judge-2",
        "judge-32",
        "judge-64",
        "runs",
    ]
    pipeline = ZImagePipeline.from_pretrained(output / "base", dtype=torch.float32)
    image = pipeline(
        "small red circle top left, on teal dots", height=64, width=64, num_inference_steps=2, output_type="pil"
    ).images[0]
    assert image.size == (64, 64)
    LlavaOnevisionForConditionalGeneration.from_pretrained(output / "judge")
    AutoTokenizer.from_pretrained(output / "judge")
    assert f"start: {output / 'judge'}\n" in (the_run(output, "judge-2") / "recipe.yaml").read_text()
    for name, width in (("judge", 128), ("judge-2", 128), ("judge-64", 64), ("judge-32", 32)):
        judge = LlavaOnevisionJudge.load(output / name)
        assert judge.model.get_input_embeddings().weight.shape[1] == width
    assert (output / "editor" / "nopair.json").is_file()
    assert all((output / part / "README.md").is_file() for part in PARTS)


def test_a_build_goes_on_where_it_was_stopped(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("vae", workplace / "weights", 2)
    metrics = the_run(workplace / "weights", "vae") / "metrics.jsonl"
    before = metrics.read_text()
    assert "complete" not in capsys.readouterr().out
    build("vae", workplace / "weights", 2)
    assert metrics.read_text() == before  # complete: nothing is trained again
    said = capsys.readouterr().out
    assert f"the run is in {metrics.parent}, complete; remove the folder to train again" in said


def test_a_trial_and_a_build_in_earnest_do_not_meet(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def settings(steps: int | None) -> VaeSettings:
        return VaeSettings(steps=steps or 2, decoder_steps=steps or 2, batch=1)

    monkeypatch.setattr("nopair.tiny.build._vae_settings", settings)
    output = workplace / "weights"

    def autoencoder(steps: int | None) -> str:
        _vae(_Order(output, steps, Console()))
        return capsys.readouterr().out

    build("vae", output, 1)
    (trial,) = (output / "runs").iterdir()
    assert f"{trial}/vae" in autoencoder(1)
    assert f"{packaged()}/base/vae" in autoencoder(3)
    assert f"{packaged()}/base/vae" in autoencoder(None)
    build("vae", output)
    (full,) = (path for path in (output / "runs").iterdir() if path != trial)
    assert f"{trial}/vae" in autoencoder(1)
    assert f"{full}/vae" in autoencoder(3)
    assert f"{full}/vae" in autoencoder(None)


def test_an_editor_of_other_steps_or_other_models_is_another_run(workplace: Path) -> None:
    output = workplace / "weights"
    for part in ("base", "judge"):
        shutil.copytree(packaged() / part, output / part)

    def folder(steps: int | None = None, output: Path = output) -> str:
        return _editor_recipe(_Order(output, steps, Console())).output

    first = folder()
    assert folder() == first
    assert Path(first).parent == output / "runs"
    assert Path(folder(output=packaged())).parent == RUNS
    assert len({first, folder(5), folder(6)}) == 3
    weights = output / "judge" / FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert folder() != first


@pytest.mark.parametrize("part", ["vae", "editor"])
def test_a_stopped_build_says_how_to_go_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    (workplace / "weights").mkdir()
    for name in ("base", "judge"):
        (workplace / "weights" / name).symlink_to(packaged() / name)
    monkeypatch.setattr(loop, "stop_on_signals", lambda: nullcontext(StopRequest(signal.SIGINT)))
    with pytest.raises(Interrupted):
        build(part, workplace / "weights", 2)
    said = capsys.readouterr().out
    assert "step 1; everything is saved, the same command goes on from here" in said
    assert "--resume" not in said


def test_a_part_without_what_it_needs_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopair.tiny.build.packaged", lambda: workplace / "nowhere")
    with pytest.raises(ModelError, match="nopair tiny build vae"):
        build("judge", workplace / "weights", 1)


@pytest.mark.parametrize(
    ("part", "kind"), [("vae", AutoencoderKL), ("judge-32", LlavaOnevisionForConditionalGeneration)]
)
def test_a_full_disk_while_a_part_is_written_is_told(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, part: str, kind: type
) -> None:
    def full(self: object, folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(kind, "save_pretrained", full)
    with pytest.raises(OutputError, match=f"{part}: cannot write the model .*No space left on device"):
        build(part, workplace / "weights", 1)


def test_the_shipped_weights_are_half_precision_and_small() -> None:
    files = list(packaged().rglob("*.safetensors"))
    assert {path.relative_to(packaged()).parts[0] for path in files} == set(PARTS)
    assert sum(path.stat().st_size for path in files) < 20e6


def test_the_shipped_configs_name_no_folder_of_the_machine_they_were_made_on() -> None:
    assert not [path for path in packaged().rglob("*.json") if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_a_judge_is_trained_on_from_its_folder(workplace: Path) -> None:
    """Its aids settle first, during which the judge itself must not move."""
    build("judge", workplace / "weights", 2, "tiny:judge")
    before, after = (load_file(folder / "judge" / FILE) for folder in (packaged(), workplace / "weights"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before), "two steps are among those that settle"
    assert the_run(workplace / "weights", "judge-continued")


def test_a_smaller_judge_is_built_beside_the_usual_one_and_trained_on(workplace: Path) -> None:
    weights = workplace / "weights"
    build("judge-32", weights, 1)
    assert {folder.name for folder in weights.iterdir()} == {"judge-32", "runs"}
    assert the_run(weights, "judge-32")
    build("judge", weights, 1, str(weights / "judge-32"))
    assert {folder.name for folder in weights.iterdir()} == {"judge-32", "runs"}
    assert the_run(weights, "judge-32-continued")


def test_after_settling_the_judge_itself_is_trained() -> None:
    judge = LlavaOnevisionJudge.load(packaged() / "judge")
    before = {name: value.clone() for name, value in judge.model.state_dict().items()}
    vae = load_model(AutoencoderKL, packaged() / "base" / "vae", torch.float32)
    base = ZImageBackbone.load(packaged() / "base")
    with pytest.raises(ValueError, match="drawn by a base"):
        JudgePhase(vae, judge.tokenizer, CONTINUED, judge.model)
    phase = JudgePhase(vae, judge.tokenizer, replace(CONTINUED, settle=1, batch=2), judge.model, base=base)
    phase.step(0)
    assert all(torch.equal(before[name], value) for name, value in phase.model.state_dict().items())
    phase.step(1)
    assert not any(
        torch.equal(before[name], value) for name, value in phase.model.named_parameters() if value.ndim == 2
    )


def test_only_a_tiny_judge_can_be_trained_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--start is for the judge, not for base"):
        build("base", workplace / "weights", 1, "tiny:judge")
    with pytest.raises(ModelError, match="nowhere: no such model folder"):
        build("judge", workplace / "weights", 1, "nowhere")
    monkeypatch.setattr("nopair.tiny.build.WIDTHS", (3584,))
    with pytest.raises(ModelError, match="tiny:judge: is no tiny judge"):
        build("judge", workplace / "weights", 1, "tiny:judge")


def test_a_shipped_judge_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nopair.tiny.cards.judge_quality", lambda *_: JudgeQuality(0.5, {("add", "edit", "right"): (0.5, 2)})
    )
    assert "| add, edit | 0.50 (!) |" in judge_tables(packaged() / "judge", packaged() / "base")
