"""The editor on a toy backbone: seeds, batches, sizes, files; and what it says of folders that hold no editor."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nopair import editor as editor_module
from nopair.backbones.fake import ToyBackbone
from nopair.backbones.folder import stored_dtype
from nopair.backbones.load import load_backbone
from nopair.backbones.zimage import ZImageBackbone
from nopair.data.images import fit, load_image, restore, save_image
from nopair.data.jobs import Job
from nopair.editor import SETTINGS_FILE, Editor, Settings, run_jobs
from nopair.errors import ConfigError, ImageError, InstructionError, MemoryShortError, ModelError, OutputError
from nopair.method.flow import levels
from nopair.types import Text

SIZE = (16, 24)
SETTINGS = Settings(steps=4, shift=3.0, height=SIZE[0], width=SIZE[1], questions="v1")
WORDS = ("make it red", "remove the blue cross at the top left", "do nothing", "add a hat")


@dataclass(frozen=True, eq=False)
class FileToy(ToyBackbone):
    """A toy that can be saved, and that does not know the word `forbidden`."""

    def encode_text(self, prompts: Sequence[str]) -> Text:
        if any("forbidden" in prompt for prompt in prompts):
            raise InstructionError("the word is forbidden")
        return super().encode_text(prompts)

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        return len(prompt.split()), 9

    def save(self, folder: Path) -> None:
        torch.save(self.transformer.state_dict(), folder / "toy.pt")

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, bits: None = None) -> Self:
        toy = cls.build(seed=99)
        toy.transformer.load_state_dict(torch.load(folder / "toy.pt", weights_only=True))
        return cls(toy.transformer.to(dtype))


@pytest.fixture
def editor() -> Editor:
    return Editor(FileToy.build(seed=1), SETTINGS)


@pytest.fixture
def references() -> torch.Tensor:
    return torch.rand(4, 3, *SIZE)


def test_an_instruction_that_would_be_cut_is_refused(editor: Editor, references: torch.Tensor) -> None:
    """What stands at its end would never be read, and that may be what is asked for."""
    edited = editor.edit(references[:1], ["please " * 8 + "go"], [0])
    assert edited.shape == references[:1].shape
    with pytest.raises(InstructionError, match=r"'please .*takes 10 tokens, this editor reads 9; shorten it") as caught:
        editor.edit(references[:2], ["go", "please " * 9 + "go"], [0, 0])
    assert "\n" not in str(caught.value)


def test_the_result_does_not_depend_on_the_batch(editor: Editor, references: torch.Tensor) -> None:
    seeds = [3, 0, 3, 2**63 - 1]
    together = editor.edit(references, WORDS, seeds)
    alone = torch.cat([editor.edit(references[i : i + 1], [WORDS[i]], [seeds[i]]) for i in range(4)])
    reversed_ = editor.edit(references.flip(0), WORDS[::-1], seeds[::-1]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, reversed_, atol=1e-5, rtol=0)


def test_image_instruction_and_seed_all_count(editor: Editor, references: torch.Tensor) -> None:
    first = editor.edit(references[:1], ["make it red"], [0])
    assert torch.equal(first, editor.edit(references[:1], ["make it red"], [0]))
    for other in (
        editor.edit(references[1:2], ["make it red"], [0]),
        editor.edit(references[:1], ["make it blue"], [0]),
        editor.edit(references[:1], ["make it red"], [1]),
        editor.with_steps(3).edit(references[:1], ["make it red"], [0]),
    ):
        assert (first - other).abs().max() > 1e-3


def test_the_global_random_state_does_not_count(editor: Editor, references: torch.Tensor) -> None:
    first = editor.edit(references[:1], ["make it red"], [0])
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(first, editor.edit(references[:1], ["make it red"], [0]))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_edit_is_the_sampler_of_the_method(editor: Editor, references: torch.Tensor, steps: int) -> None:
    """Written out: predict, noise again with fresh noise, predict; noise of seed 5 level by level."""
    toy, generator = editor.backbone, torch.Generator().manual_seed(5)
    text, clean = toy.encode_text(["make it red"]), toy.encode_image(references[:1])
    estimate = torch.zeros_like(clean)
    for level in levels(steps, SETTINGS.shift):
        t = level[None]
        noisy = (1 - t) * estimate + t * torch.randn(clean.shape[1:], generator=generator)
        with torch.no_grad():
            estimate = noisy - t * toy.velocity(noisy, t, text, clean)
    wanted = toy.decode_latents(estimate).clamp(0, 1)
    edited = editor.with_steps(steps).edit(references[:1], ["make it red"], [5])
    torch.testing.assert_close(edited, wanted, atol=1e-5, rtol=0)


def test_the_output_is_an_image_without_gradient(editor: Editor, references: torch.Tensor) -> None:
    torch.nn.init.constant_(editor.backbone.transformer.get_parameter("out.bias"), 5.0)
    edited = editor.edit(references, WORDS, range(4))
    assert edited.shape == references.shape
    assert edited.dtype == references.dtype
    assert not edited.requires_grad
    assert edited.min() == 0  # clamped, as there was much below
    assert edited.max() <= 1


def test_no_image_is_no_result(editor: Editor) -> None:
    assert editor.edit(torch.rand(0, 3, *SIZE), [], []).shape == (0, 3, *SIZE)


def test_calls_that_cannot_work(editor: Editor, references: torch.Tensor) -> None:
    with pytest.raises(InstructionError, match="empty"):
        editor.edit(references, [*WORDS[:3], "  "], range(4))
    with pytest.raises(ValueError, match="do not pair up"):
        editor.edit(references, WORDS, [1])
    with pytest.raises(ValueError, match="edit_image takes any"):
        editor.edit(torch.rand(4, 3, 16, 16), WORDS, range(4))


# On disk --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_module, "load_backbone", FileToy.load)


@pytest.mark.usefixtures("toy_family")
def test_save_and_load(editor: Editor, references: torch.Tensor, tmp_path: Path) -> None:
    for _ in range(2):  # a second time, over the first
        editor.save(tmp_path / "editor")
    assert json.loads((tmp_path / "editor" / SETTINGS_FILE).read_text()) == {
        "steps": 4,
        "shift": 3.0,
        "height": 16,
        "width": 24,
        "questions": "v1",
        "judges": [],
    }
    loaded = Editor.load(tmp_path / "editor")
    assert loaded.settings == SETTINGS
    assert torch.equal(loaded.edit(references, WORDS, range(4)), editor.edit(references, WORDS, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["editor"]


@pytest.mark.usefixtures("toy_family")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no nopair.json, so not an editor"),
        ("{", "not the settings of an editor"),
        ("[]", "not the settings of an editor"),
        ("{}", "steps: Field required"),
        (SETTINGS.model_dump_json().replace('"steps":4', '"steps":0'), "steps: "),
        (SETTINGS.model_dump_json().replace('"steps":4', '"steps":"4"'), "steps: "),
        (SETTINGS.model_dump_json().replace("3.0", "-1"), "shift: "),
        (SETTINGS.model_dump_json().replace("steps", "stepz"), "steps: "),
    ],
)
def test_a_folder_without_sound_settings_is_no_editor(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(ModelError) as error:
        Editor.load(tmp_path)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_is_not_an_editor_nor_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        Editor.load(tmp_path / "no")
    (tmp_path / SETTINGS_FILE).write_text(SETTINGS.model_dump_json())
    with pytest.raises(ModelError, match=r"model_index\.json"):
        Editor.load(tmp_path)


def test_a_save_that_fails_leaves_the_old_editor(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor.save(tmp_path / "editor")
    before = {path.name: path.read_bytes() for path in (tmp_path / "editor").iterdir()}

    def fail(self: FileToy, folder: Path) -> None:
        (folder / "half").write_bytes(b"")
        raise OutputError("no space")

    monkeypatch.setattr(FileToy, "save", fail)
    with pytest.raises(OutputError, match="no space"):
        editor.save(tmp_path / "editor")
    assert {path.name: path.read_bytes() for path in (tmp_path / "editor").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["editor"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_an_editor_opens_as_it_is_stored_except_on_a_cpu(tmp_path: Path, stored: torch.dtype) -> None:
    Editor.load("tiny:editor", dtype=stored).save(tmp_path / "editor")
    for device, asked, expected in (
        ("cpu", None, torch.float32),
        ("meta", None, stored),  # as on a GPU
        ("cpu", stored, stored),
        ("meta", torch.float32, torch.float32),
    ):
        backbone = Editor.load(tmp_path / "editor", device, asked).backbone
        assert {value.dtype for value in backbone.transformer.parameters()} == {expected}


def test_what_most_weights_are_stored_in(tmp_path: Path) -> None:
    few, many = torch.zeros(3), torch.zeros(5, 2, dtype=torch.bfloat16)
    save_file({"few": few, "many": many}, tmp_path / "model-1.safetensors")
    assert stored_dtype(tmp_path) == torch.bfloat16
    save_file({"rest": torch.zeros(9), "index": torch.zeros(99, dtype=torch.int64)}, tmp_path / "model-2.safetensors")
    assert stored_dtype(tmp_path) == torch.float32
    (tmp_path / "model-2.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"model-2\.safetensors: cannot be read .*; copy the folder again"):
        stored_dtype(tmp_path)
    with pytest.raises(ModelError, match="no safetensors weights in float32, bfloat16 or float16"):
        stored_dtype(tmp_path / "empty")


def test_an_editor_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, device: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(ZImageBackbone, "to", fails)
    with pytest.raises(MemoryShortError, match=r"asked for 2.50 GiB more\); open the editor in half precision"):
        Editor.load("tiny:editor")


def test_an_editor_is_quantised_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(folder: Path, dtype: torch.dtype, bits: int | None) -> Any:
        asked.append((dtype, bits))
        return load_backbone(folder, dtype)

    monkeypatch.setattr(editor_module, "load_backbone", load)
    Editor.load("tiny:editor", "meta", torch.bfloat16, 4)  # as on a GPU
    Editor.load("tiny:editor")
    assert asked == [(torch.bfloat16, 4), (torch.float32, None)]
    with pytest.raises(ConfigError, match="bits 4 quantises on a CUDA GPU, and the device is cpu; leave bits out"):
        Editor.load("tiny:editor", "cpu", None, 4)


# Jobs -----------------------------------------------------------------------------------------------------------------

SIZES = ((16, 24), (40, 30), (7, 90), (1, 1), (64, 96))


def _jobs(folder: Path) -> list[Job]:
    folder.mkdir(exist_ok=True)
    for number, (height, width) in enumerate(SIZES):
        save_image(torch.rand(3, height, width), folder / f"{number}.png")
    return [Job(folder / f"{n}.png", WORDS[n % len(WORDS)], folder / f"out{n}.png", seed=n) for n in range(len(SIZES))]


def test_jobs_of_any_size_in_batches_of_any_size(editor: Editor, tmp_path: Path) -> None:
    jobs = _jobs(tmp_path)
    results = {}
    for batch in (1, 2, 8):
        assert list(run_jobs(editor, jobs, batch)) == [(job, None) for job in jobs]
        results[batch] = [load_image(job.output) for job in jobs]
    for job, size, *same in zip(jobs, SIZES, *results.values(), strict=True):
        fitted = fit(load_image(job.image), *SIZE)
        wanted = restore(editor.edit(fitted.pixels[None], [job.instruction], [job.seed])[0], fitted)
        assert wanted.shape == (3, *size)
        for pixels in same:
            torch.testing.assert_close(pixels, wanted, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_one_image_of_any_size(editor: Editor, size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    fitted = fit(image, *SIZE)
    wanted = restore(editor.edit(fitted.pixels[None], ["go"], [7])[0], fitted)
    assert torch.equal(editor.edit_image(image, "go", 7), wanted)
    assert torch.equal(editor.edit_image(image, "go"), editor.edit_image(image, "go", 0))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_one_bad_job_costs_no_other_its_result(editor: Editor, tmp_path: Path, batch: int) -> None:
    good = _jobs(tmp_path)
    (tmp_path / "cut.png").write_bytes((tmp_path / "4.png").read_bytes()[:3000])
    bad = {
        "cut": (Job(tmp_path / "cut.png", "go", tmp_path / "a.png", 0), ImageError),
        "word": (Job(tmp_path / "0.png", "forbidden", tmp_path / "b.png", 0), InstructionError),
        "output": (Job(tmp_path / "0.png", "go", tmp_path / "no" / "c.png", 0), OutputError),
    }
    jobs = [good[0], bad["cut"][0], good[1], bad["word"][0], *good[2:], bad["output"][0]]
    done = dict(run_jobs(editor, jobs, batch))
    assert done.keys() == set(jobs)
    for job, kind in bad.values():
        assert isinstance(done[job], kind)
        assert not job.output.exists()
    for job in good:
        assert done[job] is None
        assert job.output.exists()


def test_an_image_may_be_edited_in_place(editor: Editor, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "teal").save(path, exif=exif)
    [(_, error)] = run_jobs(editor, [Job(path, "make it red", path, 0)], 1)
    assert error is None
    with Image.open(path) as image:
        assert image.size == (20, 30)  # upright in the file itself
        assert 0x0112 not in image.getexif()


def test_a_batch_that_does_not_fit_is_edited_one_by_one(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = editor_module.rollout

    def short(velocity: Any, noises: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        if noises.shape[1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return sampler(velocity, noises, times)

    jobs = _jobs(tmp_path)
    monkeypatch.setattr(editor_module, "rollout", short)
    assert [(job, error) for job, error in run_jobs(editor, jobs, 8)] == [(job, None) for job in jobs]
    assert all(job.output.is_file() for job in jobs)
