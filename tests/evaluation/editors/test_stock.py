"""Every kind of stock pipeline, with tiny random weights: the right arguments, shapes and errors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image

from nopair.data.images import load_image
from nopair.errors import ConfigError, MemoryShortError, ModelError, OutputError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors import stock
from nopair.evaluation.editors.base import Contestant
from nopair.evaluation.editors.load import load_contestant
from nopair.evaluation.editors.stock import StockEditor

Items = Callable[..., list[Item]]


def edited(editor: Contestant, items: list[Item], folder: Path) -> tuple[list[torch.Tensor], list[str | None]]:
    problems: list[str | None] = []
    editor.make(items, folder, lambda item, problem: problems.append(problem))
    return [load_image(editor.output(item, folder)) for item in items], problems


@pytest.fixture
def torchvision_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """OmniGen's own processor uses three transforms of torchvision, which is no dependency here."""

    def to_tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    transforms = SimpleNamespace(
        Compose=lambda steps: lambda image: [image := step(image) for step in steps][-1],
        Lambda=lambda function: function,
        ToTensor=lambda: to_tensor,
        Normalize=lambda mean, std, inplace: lambda image: (image - 0.5) / 0.5,
    )
    monkeypatch.setattr(processor_omnigen, "transforms", transforms, raising=False)
    whole = processor_omnigen.OmniGenMultiModalProcessor
    monkeypatch.setattr(pipeline_omnigen, "OmniGenMultiModalProcessor", whole, raising=False)


CASES = [
    ("instruct_pix2pix", "", (64, 96)),
    ("kontext", ",max_area=6144,_auto_resize=no", (64, 96)),
    ("klein", "", (64, 96)),
    ("omnigen", "", (64, 96)),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.usefixtures("torchvision_like")
@pytest.mark.parametrize(("name", "options", "size"), CASES, ids=[case[0] for case in CASES])
def test_a_folder_edits_at_any_number_of_steps(
    name: str, options: str, size: tuple[int, int], pipelines: ModuleType, make_items: Items, tmp_path: Path
) -> None:
    folder = tmp_path / name
    pipelines.build(name).save_pretrained(folder)
    items = make_items(2, *size)
    editor = load_contestant(f"diffusers:{folder},dtype=fp32,steps=2{options}", "cpu")
    assert isinstance(editor, StockEditor)
    assert editor.name == f"{name}-2-steps"
    images, problems = edited(editor, items, tmp_path / "out")
    assert problems == [None, None]
    assert [image.shape[1:] for image in images] == [size, size]
    assert all(image.std() > 0 for image in images)
    assert (tmp_path / "out/fullset/add/en/1.png").is_file()
    again, _ = edited(editor, items[1:], tmp_path / "again")
    assert torch.equal(again[0], images[1]), "an item's output does not depend on the others"
    other, _ = edited(
        load_contestant(f"diffusers:{folder},dtype=fp32,steps=2,seed=1{options}", "cpu"), items[:1], folder
    )
    assert not torch.equal(other[0], images[0])
    calls = []
    pipeline = editor.opened()
    inner = pipeline.scheduler.step
    pipeline.scheduler.step = lambda *args, **named: calls.append(1) or inner(*args, **named)
    edited(dataclasses.replace(editor, opened=lambda: pipeline), items[:1], tmp_path / "third")
    assert len(calls) == 2


def test_qwen_image_edit(
    pipelines: ModuleType, make_items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from a folder, whose processor has a video part that needs torchvision; and not at its square megapixel."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (56, 56, None))
    pipeline = pipelines.build("qwen_image_edit")
    pipeline.set_progress_bar_config(disable=True)
    editor = StockEditor("qwen", {}, lambda: pipeline, {"num_inference_steps": 2, "true_cfg_scale": 1.0}, 0)
    images, problems = edited(editor, make_items(1), tmp_path / "out")
    assert problems == [None]
    assert images[0].shape == (3, 56, 56)
    assert images[0].std() > 0


def test_the_instruction_and_the_image_reach_the_pipeline(make_items: Items, tmp_path: Path) -> None:
    """And outputs that are no numbers, or that a safety checker blanked, are problems of their own."""
    seen: list[dict[str, Any]] = []
    answers = [torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("nan")), torch.zeros(3, 8, 8)]

    def pipeline(**given: Any) -> SimpleNamespace:
        seen.append(given)
        if len(seen) == 4:
            raise ValueError("Image too small:\n48x32")
        return SimpleNamespace(images=[answers[len(seen) - 1]], nsfw_content_detected=[len(seen) == 3])

    items = make_items(4)
    editor = StockEditor("toy", {}, lambda: pipeline, {"guidance_scale": 2.5}, 0)
    problems: list[str | None] = []
    editor.make(items, tmp_path, lambda item, problem: problems.append(problem))
    assert problems[0] is None
    assert "values that are not numbers" in str(problems[1])
    assert "safety checker" in str(problems[2])
    assert problems[3] == "function fails (ValueError: Image too small: 48x32)"
    assert [given["prompt"] for given in seen] == [item.instruction for item in items]
    assert all(given["guidance_scale"] == 2.5 for given in seen)
    np.testing.assert_array_equal(np.array(seen[0]["image"]), np.array(Image.open(items[0].source)))
    assert [path.name for path in (tmp_path / "fullset/add/en").iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("given", "offload"),
    [
        *((f",offload={word}", True) for word in ("yes", "true", "1", "True")),
        *((f",offload={word}", False) for word in ("no", "false", "0")),
        ("", False),
    ],
)
def test_offload_is_yes_or_no_in_whichever_words(
    given: str, offload: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(stock, "_open", lambda *given, offload: offload)
    folder = tmp_path / "p2p"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionInstructPix2PixPipeline"}')
    editor: Any = load_contestant(f"diffusers:{folder}{given}", "cuda")
    assert editor.opened() is offload
    with pytest.raises(ConfigError, match="offload is maybe; give one of true, yes, false, no, 1, 0"):
        load_contestant(f"diffusers:{folder},offload=maybe", "cuda")


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError, IndexError, ZeroDivisionError])
def test_a_pipeline_that_fails_at_one_edit_costs_no_other(
    error: type[Exception], make_items: Items, tmp_path: Path
) -> None:
    def pipeline(prompt: str, **given: Any) -> SimpleNamespace:
        if prompt == "add 1 hats":
            raise error("sizes of tensors\nmust match")
        return SimpleNamespace(images=[torch.zeros(3, 8, 8)])

    editor = StockEditor("toy", {}, lambda: pipeline, {"guidance_scale": 2.5}, 0)
    problems: list[str | None] = []
    editor.make(make_items(3), tmp_path, lambda item, problem: problems.append(problem))
    assert problems == [None, f"function fails ({error.__name__}: sizes of tensors must match)", None]


def test_a_full_disk_ends_it(make_items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(stock, "save_image", full)
    told: list[str | None] = []
    editor = StockEditor("toy", {}, lambda: lambda **given: SimpleNamespace(images=[torch.zeros(3, 8, 8)]), {}, 0)
    with pytest.raises(OutputError, match="the disk is full"):
        editor.make(make_items(2), tmp_path, lambda item, problem: told.append(problem))
    assert not told


def test_an_argument_of_a_wrong_type_is_an_error_of_the_user(
    pipelines: ModuleType, make_items: Items, tmp_path: Path
) -> None:
    folder = tmp_path / "p2p"
    pipelines.build("instruct_pix2pix").save_pretrained(folder)
    editor = load_contestant(f"diffusers:{folder},dtype=fp32,steps=1,guidance_scale=high", "cpu")
    with pytest.raises(ConfigError, match=r"p2p-1-steps: .* fails \(TypeError.*check .*guidance_scale=high"):
        editor.make(make_items(2), tmp_path / "out", lambda item, problem: None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_device_without_memory_ends_it_in_one_line(error: Exception, make_items: Items, tmp_path: Path) -> None:
    def pipeline(**given: Any) -> None:
        raise error

    told: list[str | None] = []
    editor = StockEditor("toy", {}, lambda: pipeline, {"guidance_scale": 2.5}, 0)
    with pytest.raises(MemoryShortError, match=r"no memory left.*give toy ,offload=yes or a smaller size"):
        editor.make(make_items(2), tmp_path, lambda item, problem: told.append(problem))
    assert not told


def test_what_cannot_be_compared(pipelines: ModuleType, make_items: Items, tmp_path: Path) -> None:
    folder = tmp_path / "p2p"
    pipelines.build("instruct_pix2pix").save_pretrained(folder)
    for text, why in (
        (f"diffusers:{folder},guidance=2", "takes no guidance; did you mean guidance_scale"),
        (f"diffusers:{folder},prompt=x", "takes no prompt"),
        (f"diffusers:{folder},dtype=int8", "choose bf16"),
        (f"diffusers:{folder},steps=0", "at least 1"),
        (f"difusers:{folder}", "expected one of nopair:PLACE, diffusers:PLACE"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_contestant(text, "cpu")
    with pytest.raises(ModelError, match="no such model folder"):
        load_contestant(f"diffusers:{tmp_path / 'no'}", "cpu")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "weights")
    editor = load_contestant(f"diffusers:{folder}", "cpu")
    assert not edited(editor, [], tmp_path / "out")[0], "nothing to do, nothing opened"
    with pytest.raises(ModelError, match="cannot be opened by diffusers"):
        edited(editor, make_items(1), tmp_path / "out")
    (tmp_path / "weights").rename(weights)
    with pytest.raises(ModelError, match="cannot be opened by diffusers"):
        load_contestant(f"diffusers:{tmp_path}", "cpu")
    (folder / "model_index.json").write_text(
        (folder / "model_index.json").read_text().replace("StableDiffusionInstructPix2PixPipeline", "DDPMPipeline")
    )
    with pytest.raises(ModelError, match="takes no image and instruction"):
        load_contestant(f"diffusers:{folder}", "cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsImg2ImgPipeline"}')
    with pytest.raises(ModelError, match=r"needs .*sentencepiece"):
        load_contestant(f"diffusers:{tmp_path}", "cpu")
