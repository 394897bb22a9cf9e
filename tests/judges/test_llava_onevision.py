"""The LLaVA-OneVision judge against the family's own processor and forward, on a tiny random checkpoint."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
)

from nopair.errors import JudgeError, ModelError
from nopair.judges.base import Judge
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.types import Question

PARTS = ("Was this carried out: paint it red? Before: ", "{reference}", " After: ", "{edited}", " Answer Yes or No.")
TWO = "".join(PARTS)
LONG = "Is all that was not named in this rather long instruction the same? {reference} {edited} Answer Yes or No."
ONE = "Is there a circle? {edited} Answer Yes or No."
NAMED = (
    "{reference}",
    "{edited}",
    "Was this carried out: paint it red? Before: (the first image) After: (the second image) Answer Yes or No.",
)
IMAGES_FIRST = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% for part in m.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ '\n' + part.text }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As published checkpoints have it."""
WORDS_ALONE = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
"""As language models have it."""


class _Processor(LlavaOnevisionProcessor):
    """The library's own, less its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


@pytest.fixture
def copy(judge_folder: Path, tmp_path: Path) -> Path:
    """A folder of one's own to break."""
    return shutil.copytree(judge_folder, tmp_path / "judge")


@pytest.fixture(params=["text and images in order", "images first"])
def either_judge(request: pytest.FixtureRequest, judge: LlavaOnevisionJudge, copy: Path) -> LlavaOnevisionJudge:
    """The judge with either kind of chat template that checkpoints of the family have."""
    if request.param == "images first":
        (copy / "chat_template.jinja").write_text(IMAGES_FIRST)
        return LlavaOnevisionJudge.load(copy)
    return judge


def _ask(*prompts: str) -> list[Question]:
    return [Question("edit", prompt, wants_yes=True) for prompt in prompts]


def _images(batch: int, height: int = 64, width: int = 64) -> Tensor:
    """Random images of 8-bit values."""
    return torch.randint(0, 256, (batch, 3, height, width)) / 255


def _file(pixels: Tensor) -> Image.Image:
    return Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy())


def _library_inputs(judge: LlavaOnevisionJudge, folder: Path, images: list[Tensor]) -> BatchFeature:
    """What the family's processor makes of the two-image question."""
    processor = _Processor(
        LlavaOnevisionImageProcessorPil.from_pretrained(folder),
        judge.tokenizer,
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=judge.tokenizer.chat_template,
    )
    parts = NAMED if judge.tokenizer.chat_template == IMAGES_FIRST else PARTS
    content = [{"type": "image"} if part[0] == "{" else {"type": "text", "text": part} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=text, images=[[_file(image) for image in images]], return_tensors="pt")


def _odds(judge: LlavaOnevisionJudge, logits: Tensor) -> Tensor:
    """Written out, for one row of logits over the vocabulary."""
    log_p = logits.double().log_softmax(dim=-1)
    yes, no = (log_p[list(ids)].exp().sum().log() for ids in (judge.answers.yes, judge.answers.no))
    return (yes - no).float()


def test_prompts_are_the_familys_token_for_token(either_judge: LlavaOnevisionJudge, judge_folder: Path) -> None:
    inputs = _library_inputs(either_judge, judge_folder, list(_images(2, 50, 70)))
    assert either_judge.encode_prompt(TWO) == inputs["input_ids"][0].tolist()


def test_a_prompt_of_one_image_is_expanded_as_one_of_several(judge: LlavaOnevisionJudge) -> None:
    text = f"<|im_start|>user\nIs there a circle? {'<image>' * 65} Answer Yes or No.<|im_end|>\n<|im_start|>assistant\n"
    assert judge.image_tokens == 65
    assert judge.encode_prompt(ONE) == judge.tokenizer.encode(text)


@pytest.mark.parametrize(("size", "tolerance"), [((64, 64), 1e-5), ((48, 90), 1e-2)])
def test_the_answer_is_the_familys_own(
    either_judge: LlavaOnevisionJudge, judge_folder: Path, size: tuple[int, int], tolerance: float
) -> None:
    """From files through the library's processor and forward; other sizes differ by the processor's 8-bit rounding."""
    reference, edited = _images(1, *size), _images(1, *size)
    inputs = _library_inputs(either_judge, judge_folder, [reference[0], edited[0]])
    theirs = _odds(either_judge, either_judge.model(**inputs).logits[0, -1])
    ours = either_judge.yes_minus_no(reference, edited, [_ask(TWO)])
    torch.testing.assert_close(ours[0, 0], theirs, rtol=0, atol=tolerance)
    swapped = either_judge.yes_minus_no(edited, reference, [_ask(TWO)])
    assert (swapped[0, 0] - theirs).abs() > 10 * tolerance, "else this test would not see the order of the images"


def test_the_answer_about_one_image_is_the_familys_own(judge: LlavaOnevisionJudge) -> None:
    pixels = _images(1)
    ids = torch.tensor([judge.encode_prompt(ONE)])
    inputs = judge.preprocess(pixels)
    sizes = torch.tensor([[64, 64]])
    logits = judge.model(ids, pixel_values=inputs, image_sizes=sizes, batch_num_images=torch.tensor([2])).logits
    ours = judge.yes_minus_no(_images(1), pixels, [_ask(ONE)])
    torch.testing.assert_close(ours[0, 0], _odds(judge, logits[0, -1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (80, 50)])
def test_the_edited_image_gets_a_gradient_everywhere_and_nothing_else_does(
    judge: LlavaOnevisionJudge, size: tuple[int, int]
) -> None:
    reference, edited = _images(2, *size).requires_grad_(), _images(2, *size).clamp(0.1, 0.9).requires_grad_()
    odds = judge.yes_minus_no(reference, edited, [_ask(TWO, ONE), _ask(LONG)])
    towards, other = torch.autograd.grad(odds.sum(), [edited, reference], allow_unused=True)
    assert other is None
    assert towards.isfinite().all()
    assert (towards != 0).all()
    assert not any(parameter.requires_grad for parameter in judge.model.parameters())
    assert not judge.model.training


def test_the_gradient_is_the_derivative(judge: LlavaOnevisionJudge) -> None:
    reference, edited = _images(1, 70, 70), _images(1, 70, 70).clamp(0.2, 0.8).requires_grad_()
    ask = [_ask(TWO, ONE)]
    (gradient,) = torch.autograd.grad(judge.yes_minus_no(reference, edited, ask).sum(), edited)
    step = 0.1 * gradient.sign()
    with torch.no_grad():
        ends = [judge.yes_minus_no(reference, edited + s * step, ask).sum() for s in (0.02, -0.02)]
    torch.testing.assert_close((ends[0] - ends[1]) / 0.04, (gradient * step).sum(), rtol=0.02, atol=0)


def test_an_answer_does_not_depend_on_its_neighbours(judge: LlavaOnevisionJudge) -> None:
    """Rows of other lengths and numbers of images, also none, in one batch or alone: values and gradients."""
    rows = [_ask(ONE, LONG), _ask(TWO), [], _ask(LONG, ONE, TWO)]
    reference, edited = _images(4, 50, 64), _images(4).clamp(0.1, 0.9).requires_grad_()
    together = judge.yes_minus_no(reference, edited, rows)
    assert together.shape == (4, 3)
    assert together.dtype == torch.float32
    (gradient,) = torch.autograd.grad(together.sum(), edited)
    for i, row in enumerate(rows):
        alone = edited[i : i + 1].detach().requires_grad_()
        answers = judge.yes_minus_no(reference[i : i + 1], alone, [row])
        torch.testing.assert_close(together[i, : len(row)], answers[0], rtol=0, atol=1e-5)
        assert together[i, len(row) :].eq(0).all(), "not asked is zero"
        if row:
            (expected,) = torch.autograd.grad(answers.sum(), alone)
            torch.testing.assert_close(gradient[i : i + 1], expected, rtol=1e-3, atol=1e-6)
        else:
            assert gradient[i].eq(0).all()


@pytest.mark.parametrize(("token", "moves"), [("<pad>", False), ("?", True)])
def test_padding_does_not_act(judge: LlavaOnevisionJudge, copy: Path, token: str, moves: bool) -> None:
    reference, edited, rows = _images(2), _images(2), [_ask(ONE), _ask(LONG, TWO)]
    other = LlavaOnevisionJudge.load(copy)
    with torch.no_grad():
        other.model.get_input_embeddings().weight[judge.tokenizer.convert_tokens_to_ids(token)] += 10
    change = other.yes_minus_no(reference, edited, rows) - judge.yes_minus_no(reference, edited, rows)
    assert bool(change[0, 0].abs() > 1e-3) is moves
    assert bool(change.eq(0).all()) is not moves


@pytest.mark.parametrize(
    ("rows", "vision_calls", "language_calls"),
    [
        ([_ask(TWO, LONG), _ask(ONE, TWO)], 2, 1),
        ([_ask(ONE), _ask(ONE, ONE)], 1, 1),
        ([[], []], 0, 0),
    ],
)
def test_images_are_seen_once_and_all_questions_put_at_once(
    judge: LlavaOnevisionJudge, rows: list[list[Question]], vision_calls: int, language_calls: int
) -> None:
    calls: Counter[str] = Counter()
    towers = {"vision": judge.model.model.vision_tower, "language": judge.model.model.language_model}
    hooks = [
        tower.register_forward_pre_hook(lambda *_, name=name: calls.update([name])) for name, tower in towers.items()
    ]
    answers = judge.yes_minus_no(_images(2), _images(2), rows)
    for hook in hooks:
        hook.remove()
    assert calls == Counter(vision=vision_calls, language=language_calls)
    assert answers.shape == (2, max(map(len, rows)))


def test_half_precision_weights_give_answers_in_full_precision(judge: LlavaOnevisionJudge, judge_folder: Path) -> None:
    half = LlavaOnevisionJudge.load(judge_folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    reference, edited = _images(2), _images(2).requires_grad_()
    answers = half.yes_minus_no(reference, edited, [_ask(TWO), _ask(ONE)])
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, judge.yes_minus_no(reference, edited, [_ask(TWO), _ask(ONE)]), rtol=0, atol=0.3)
    assert torch.autograd.grad(answers.sum(), edited)[0].dtype == torch.float32


def test_it_is_a_judge(judge: LlavaOnevisionJudge) -> None:
    def takes(judge: Judge) -> Judge:
        return judge

    assert takes(judge) is judge


@pytest.mark.parametrize("prompt", ["No image at all.", "", "{edited} and a smuggled <image>"])
def test_a_prompt_that_does_not_fit_is_refused(judge: LlavaOnevisionJudge, prompt: str) -> None:
    with pytest.raises(JudgeError, match="question") as caught:
        judge.yes_minus_no(_images(1), _images(1), [_ask(prompt)])
    assert "\n" not in str(caught.value)


def test_rows_must_match_the_batch(judge: LlavaOnevisionJudge) -> None:
    with pytest.raises(ValueError, match="rows of questions"):
        judge.yes_minus_no(_images(2), _images(2), [_ask(ONE)])


def test_tied_weights_are_not_missing_ones(judge: LlavaOnevisionJudge, copy: Path) -> None:
    config = judge.model.config.__class__.from_pretrained(copy)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(copy)
    tied = LlavaOnevisionJudge.load(copy).model
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_the_template_of_older_checkpoints_is_read(judge: LlavaOnevisionJudge, copy: Path) -> None:
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert LlavaOnevisionJudge.load(copy).encode_prompt(TWO) == judge.encode_prompt(TWO)


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_the_template_of_the_processor_comes_before_that_of_the_language_model(
    judge: LlavaOnevisionJudge, copy: Path, name: str
) -> None:
    """As in published folders, whose tokenizer_config.json still has the template of a model for words alone."""
    (copy / name).write_text(json.dumps({"chat_template": (copy / "chat_template.jinja").read_text()}))
    (copy / "chat_template.jinja").unlink()
    _configured(lambda c: c.update(chat_template=WORDS_ALONE), "tokenizer_config.json")(copy)
    assert LlavaOnevisionJudge.load(copy).encode_prompt(TWO) == judge.encode_prompt(TWO)


def test_a_model_that_thinks_aloud_first_is_refused(copy: Path) -> None:
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text(template + "{{ '<think>\n' }}")
    with pytest.raises(JudgeError, match="opens a thought"):
        LlavaOnevisionJudge.load(copy)


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _with(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _configured(change: Callable[[dict], object], name: str = "config.json") -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return apply


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


BROKEN = {
    "no folder": (shutil.rmtree, "config.json is missing"),
    "no config": (_without("config.json"), "config.json is missing"),
    "config cut short": (_with("config.json", "{"), "not valid JSON"),
    "config of another kind": (_with("config.json", "[]"), "family None"),
    "another family": (_configured(lambda c: c.update(model_type="llava")), "family 'llava'"),
    "config of a wrong type": (_configured(lambda c: c.update(image_token_index="x")), "image_token_index"),
    "no weights": (_without("model.safetensors"), "model.safetensors"),
    "weights cut short": (_cut_weights, "cannot load"),
    "weights of other shapes": (_configured(lambda c: c["vision_config"].update(image_size=32)), "other shapes"),
    "weights missing": (_configured(lambda c: c["vision_config"].update(num_hidden_layers=3)), "lacks weights"),
    "no tokenizer": (_without("tokenizer.json"), "tokenizer"),
    "tokenizer cut short": (_with("tokenizer.json", "{"), "cannot load"),
    "no padding token": (_configured(lambda c: c.pop("pad_token"), "tokenizer_config.json"), "padding token"),
    "no image processor": (_without("preprocessor_config.json"), "image processor"),
    "image processor of another size": (
        _configured(lambda c: c.update(size={"height": 32, "width": 32}), "preprocessor_config.json"),
        "size",
    ),
    "tokenizer of nothing": (_with("tokenizer.json", "{}"), "cannot load the tokenizer"),
    "tokenizer of another kind": (_with("tokenizer.json", "[]"), "cannot load the tokenizer"),
    "tokenizer without a model": (
        _configured(lambda c: c.update(model=None), "tokenizer.json"),
        "cannot load the tokenizer .data did not match",
    ),
    "tokenizer of another version": (
        _configured(lambda c: c.update(version="9"), "tokenizer.json"),
        "cannot load the tokenizer .Unknown tokenizer version",
    ),
    "tokenizer settings of another kind": (_with("tokenizer_config.json", "[]"), "cannot load the tokenizer"),
    "a length that is no number": (
        _configured(lambda c: c.update(model_max_length="x"), "tokenizer_config.json"),
        "model_max_length of a wrong type",
    ),
    "generation settings of another kind": (_with("generation_config.json", "[]"), "cannot load the judge"),
    "a precision that is none": (_configured(lambda c: c.update(dtype="nope")), "cannot load the judge"),
    "image processor of another kind": (_with("preprocessor_config.json", "[]"), "cannot load the image processor"),
    **{
        f"image processor with {name}: {value}": (
            _configured(lambda c, name=name, value=value: c.update({name: value}), "preprocessor_config.json"),
            f"image processor .*{name}",
        )
        for name, value in [
            ("image_mean", None),
            ("image_mean", [0.5]),
            ("image_mean", 0.5),
            ("image_mean", ["a", "b", "c"]),
            ("image_mean", [0.5, 0.5, math.nan]),
            ("image_std", None),
            ("image_std", [0, 1, 1]),
            ("resample", None),
            ("resample", "x"),
            ("rescale_factor", None),
            ("rescale_factor", "x"),
            ("size", None),
        ]
    },
    "no chat template": (_without("chat_template.jinja"), "no chat template"),
    "broken chat template": (_with("chat_template.jinja", "{% for"), "chat template fails"),
    "chat template for words alone": (
        lambda folder: (folder / "chat_template.jinja").write_text(WORDS_ALONE),
        "chat template fails",
    ),
    "chat template that is no text": (_with("chat_template.json", '{"chat_template": 3}'), "no text"),
    "unreadable chat template": (_with("chat_template.json", "{"), "cannot be read"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_folder_gets_one_line(copy: Path, problem: str) -> None:
    damage, words = BROKEN[problem]
    damage(copy)
    with pytest.raises(ModelError, match=words) as caught:
        LlavaOnevisionJudge.load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value) or "judge's" in str(caught.value)


def test_another_vision_tower_is_refused(judge: LlavaOnevisionJudge, copy: Path) -> None:
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = LlavaOnevisionConfig(vision_config=vision, text_config=judge.model.config.text_config)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(copy)
    with pytest.raises(ModelError, match="SigLIP but CLIPVisionConfig"):
        LlavaOnevisionJudge.load(copy)


def test_a_chat_template_without_images_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].role }}")
    with pytest.raises(JudgeError, match="0 are in its tokens"):
        LlavaOnevisionJudge.load(copy)


def test_a_vocabulary_without_answers_is_refused(copy: Path) -> None:
    """Without merges every word is spelt letter by letter."""
    _configured(lambda c: c["model"].update(merges=[]), "tokenizer.json")(copy)
    with pytest.raises(JudgeError, match="Yes is not one token"):
        LlavaOnevisionJudge.load(copy)


def test_where_images_stand_first_words_say_which_is_which(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text(IMAGES_FIRST)
    judge = LlavaOnevisionJudge.load(copy)
    for question, words in (
        (ONE, "Is there a circle? Answer Yes or No."),
        (LONG, LONG.format(reference="(the first image)", edited="(the second image)")),
        (LONG.replace("{reference} {edited}", "{edited} {reference}"), LONG.format(
            reference="(the first image)", edited="(the second image)")),
    ):  # fmt: skip
        images = "<image>" * judge.image_tokens * question.count("{")
        text = f"<|im_start|>user {images}\n{words}<|im_end|><|im_start|>assistant\n"
        assert judge.encode_prompt(question) == judge.tokenizer.encode(text)
    with pytest.raises(JudgeError, match="5 images; show at most 4"):
        judge.encode_prompt("Are these alike? " + "{edited}" * 5)
