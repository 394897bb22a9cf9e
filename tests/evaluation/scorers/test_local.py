"""A local judge: a random LLaVA small enough to run at once. It knows nothing, and gets no marks for that."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from nopair.errors import ConfigError, MemoryShortError, ModelError
from nopair.evaluation.scorers.asking import JudgedScorer, Task, ask_all, open_questions, told_estimate
from nopair.evaluation.scorers.judge import ScoringJudge, load_scoring_judge
from nopair.evaluation.scorers.rubric import ours
from nopair.evaluation.scorers.rules import RULES
from nopair.evaluation.scorers.store import Store
from nopair.weights import resolve

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images, fast, patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT,
        num_additional_image_tokens=1,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
        text_config=Qwen2Config(**small, vocab_size=len(fast), num_key_value_heads=1, eos_token_id=fast.eos_token_id),
        image_token_index=fast.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    path = tmp_path_factory.mktemp("local") / "tiny-llava"
    LlavaForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_it_answers_and_nonsense_is_missing(folder: Path, make_task: Callable[..., Task], tmp_path: Path) -> None:
    judge = load_scoring_judge(f"local:{folder},dtype=fp32,tokens=8", "cpu")
    assert isinstance(judge, ScoringJudge)
    assert judge.name == judge.model == "tiny-llava"
    assert load_scoring_judge(f"local:{folder},name=a", "cpu").model == "tiny-llava"
    assert judge.version.startswith("llava ")
    scorer = JudgedScorer(ours("viescore"), RULES["viescore"], judge)
    task = make_task("a", torch.rand(3, 20, 12))
    store = Store(tmp_path / "replies.jsonl")
    assert "2 questions about 3 images, answered here" in told_estimate(scorer, open_questions(scorer, [task], store))
    with store:
        found = asyncio.run(ask_all(scorer, open_questions(scorer, [task], store), store, lambda done: None))
    assert found.usage.requests == 2
    assert found.usage.output_tokens <= 16
    marks, problems = scorer.marks(task, store, found.failed)
    assert set(marks.values()) == {None}
    assert len(problems) == 2
    texts = [record.text for record in store.records.values()]
    with Store(tmp_path / "again.jsonl") as again:
        asyncio.run(ask_all(scorer, open_questions(scorer, [task], again), again, lambda done: None))
    assert [record.text for record in again.records.values()] == texts, "greedy: the same words each time"


def test_what_can_judge_can_score_without_torchvision(make_task: Callable[..., Task], tmp_path: Path) -> None:
    """Its folder alone: the library's processor for this family also takes videos."""
    judge = load_scoring_judge(f"local:{resolve('tiny:judge')},dtype=fp32,tokens=4", "cpu")
    assert judge.version.startswith("llava_onevision ")
    scorer = JudgedScorer(ours("viescore"), RULES["viescore"], judge)
    with Store(tmp_path / "replies.jsonl") as store:
        asked = open_questions(scorer, [make_task("a", torch.rand(3, 20, 12))], store)
        usage = asyncio.run(ask_all(scorer, asked, store, lambda done: None)).usage
    assert usage.requests == 2
    assert usage.output_tokens <= 8


def test_a_device_without_memory_is_one_line(
    folder: Path, make_task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    task = make_task("a", torch.rand(3, 20, 12))

    def asked(place: object, number: int) -> dict[str, str]:
        judge = load_scoring_judge(f"local:{place},dtype=fp32,tokens=4", "cpu")
        scorer = JudgedScorer(ours("viescore"), RULES["viescore"], judge)
        with Store(tmp_path / f"{number}.jsonl") as store:
            found = asyncio.run(ask_all(scorer, open_questions(scorer, [task], store), store, lambda done: None))
            return dict(found.failed)

    places = (folder, resolve("tiny:judge"))
    with monkeypatch.context() as patch:
        for kind in (LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration):
            patch.setattr(kind, "generate", fails)
        for number, place in enumerate(places):
            assert all("2.50 GiB more); show" in why for why in asked(place, number).values())
    monkeypatch.setattr(torch.nn.Module, "to", fails)
    for number, place in enumerate(places):
        with pytest.raises(MemoryShortError, match=r"2.50 GiB more\); take a smaller judge than"):
            asked(place, number)


def test_weights_that_are_missing_are_not_made_up(folder: Path, make_task: Callable[..., Task], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "judge"))
    weights = load_file(copy / "model.safetensors")
    gone = next(name for name in sorted(weights) if "mlp" in name)
    save_file(
        {name: value for name, value in weights.items() if name != gone}, copy / "model.safetensors", {"format": "pt"}
    )
    scorer = JudgedScorer(ours("viescore"), RULES["viescore"], load_scoring_judge(f"local:{copy},dtype=fp32", "cpu"))
    task = make_task("a", torch.rand(3, 20, 12))
    with Store(tmp_path / "replies.jsonl") as store, pytest.raises(ModelError, match=r"1 weights are missing, .*mlp"):
        asyncio.run(ask_all(scorer, open_questions(scorer, [task], store), store, lambda done: None))


def test_what_is_no_local_judge(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load_scoring_judge(f"local:{tmp_path / 'no'}", "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="cannot be loaded as a judge"):
        load_scoring_judge(f"local:{tmp_path}", "cpu")
    with pytest.raises(ConfigError, match="choose bf16"):
        load_scoring_judge(f"local:{folder},dtype=int3", "cpu")
