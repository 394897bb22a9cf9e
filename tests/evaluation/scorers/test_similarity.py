"""DINO and CLIP measures with random encoders: what is alike is alike under any weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from nopair.data.images import save_image
from nopair.errors import MemoryShortError, ModelError
from nopair.evaluation.scorers.asking import Task
from nopair.evaluation.scorers.similarity import SimilarityScorer, load_clip, load_dino
from nopair.evaluation.scorers.store import Store

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DINO as published, without a pooler, and a CLIP."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    dino, clip = root / "dino", root / "clip"
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, initializer_range=0.5)
    ViTModel(config, add_pooling_layer=False).save_pretrained(dino)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(dino)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(clip)
    text = CLIPTextConfig(**SMALL, vocab_size=len(fast), max_position_embeddings=77, eos_token_id=fast.eos_token_id)
    vision = CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, initializer_range=0.5)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    ).save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    return dino, clip


@pytest.fixture
def scorer(folders: tuple[Path, Path]) -> SimilarityScorer:
    return SimilarityScorer((load_dino(folders[0], CPU), load_clip(folders[1], CPU)))


def test_a_copy_is_alike_and_noise_is_not(
    scorer: SimilarityScorer, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    assert scorer.names == ("DINO", "CLIP-I", "CLIP-T")
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 40, 40)
    shown = {"copy": red, "near": (red + 0.1 * torch.rand(3, 40, 40)).clamp(0, 1), "noise": torch.rand(3, 40, 40)}
    tasks = [make_task(name, image) for name, image in shown.items()]
    with Store(tmp_path / "marks.jsonl") as store:
        assert scorer.score(tasks, store, lambda done: None) == {}
    marks = {task.item.place: scorer.marks(task, store, {})[0] for task in tasks}
    for name in ("DINO", "CLIP-I"):
        assert marks["copy"][name] == pytest.approx(1.0, abs=1e-5)
        assert marks["copy"][name] > marks["near"][name] > marks["noise"][name]
    assert all(-1 <= row[name] <= 1 for row in marks.values() for name in ("DINO", "CLIP-I"))
    assert all(row["CLIP-T"] is None for row in marks.values()), "no caption, no likeness to it"


def test_a_target_a_copy_and_noise_get_the_order_that_they_must(
    scorer: SimilarityScorer, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    """Photos of a blue subject, an image before that is red: the target shows the subject, a copy does not."""
    red, blue = (torch.tensor(colour).view(3, 1, 1).expand(3, 40, 40) for colour in ([1.0, 0, 0], [0, 0, 1.0]))
    photos = []
    for name in ("one", "two"):
        photos.append(tmp_path / f"{name}.png")
        save_image((blue + 0.1 * torch.rand(3, 40, 40)).clamp(0, 1), photos[-1])
    shown = {"target": blue, "half": (red + blue) / 2, "copy": red, "noise": torch.rand(3, 40, 40)}
    tasks = [make_task(name, image) for name, image in shown.items()]
    tasks = [replace(task, item=replace(task.item, subject_images=tuple(photos))) for task in tasks]
    with Store(tmp_path / "marks.jsonl") as store:
        assert scorer.score(tasks, store, lambda done: None) == {}
    marks = {task.item.place: scorer.marks(task, store, {})[0] for task in tasks}
    for name in ("DINO", "CLIP-I"):
        assert marks["target"][name] > marks["half"][name] > marks["copy"][name]
        assert marks["target"][name] > marks["noise"][name]


def test_the_mean_goes_over_all_photos_and_words_matter(
    scorer: SimilarityScorer, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    task = make_task("a", torch.rand(3, 40, 40))
    other = tmp_path / "other.png"
    save_image(torch.rand(3, 40, 40), other)

    def with_photos(*photos: Path, caption: str = "a dog") -> Task:
        return replace(task, item=replace(task.item, subject_images=photos, caption=caption))

    tasks = [
        with_photos(task.output),
        with_photos(other),
        with_photos(task.output, other),
        with_photos(other, caption="a cat in the snow"),
    ]
    with Store(tmp_path / "marks.jsonl") as store:
        scorer.score(tasks, store, lambda done: None)
    same, far, both, words = (scorer.marks(one, store, {})[0] for one in tasks)
    for name in ("DINO", "CLIP-I"):
        assert same[name] == pytest.approx(1.0, abs=1e-5)
        assert both[name] == pytest.approx((same[name] + far[name]) / 2, abs=1e-5)
    assert same["CLIP-T"] == pytest.approx(far["CLIP-T"], abs=1e-6)
    assert words["CLIP-T"] != pytest.approx(far["CLIP-T"], abs=1e-6)


def test_measured_once_and_broken_images_are_missing(
    scorer: SimilarityScorer, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = [make_task("a", torch.rand(3, 40, 40)), make_task("b", torch.rand(3, 40, 40))]
    tasks[1].output.write_bytes(b"no image")
    with Store(tmp_path / "marks.jsonl") as store:
        failed = scorer.score(tasks, store, lambda done: None)
    assert len(store.records) == 1
    marks, problems = scorer.marks(tasks[1], store, failed)
    assert set(marks.values()) == {None}
    assert "not a readable" in problems[0]
    written = (tmp_path / "marks.jsonl").read_text()
    with Store(tmp_path / "marks.jsonl") as again:
        scorer.score(tasks[:1], again, lambda done: None)
    assert (tmp_path / "marks.jsonl").read_text() == written


def test_a_device_without_memory_is_one_line(
    folders: tuple[Path, Path], make_task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    dino = load_dino(folders[0], CPU)
    monkeypatch.setattr(ViTModel, "forward", fails)
    with Store(tmp_path / "marks.jsonl") as store, pytest.raises(MemoryShortError, match="smaller encoders"):
        SimilarityScorer((dino,)).score([make_task("a", torch.rand(3, 40, 40))], store, lambda done: None)
    monkeypatch.setattr(ViTModel, "to", fails)
    with pytest.raises(MemoryShortError, match="smaller encoders"):
        load_dino(folders[0], CPU)


def test_what_is_no_encoder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load_dino(tmp_path / "no", CPU)
    with pytest.raises(ModelError, match="is of the family 'clip', expected one of vit"):
        load_dino(folders[1], CPU)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_clip(tmp_path, CPU)
