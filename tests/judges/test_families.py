"""What holds for a judge of every family, each on a tiny random checkpoint against the library's own code."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from nopair import precision as precision_module
from nopair.errors import JudgeError, MissingExtraError, ModelError
from nopair.judges.base import Judge
from nopair.judges.load import FAMILIES, load_judge
from nopair.judges.normalise import Normalisation
from nopair.judges.vision_language import Family, VisionLanguageJudge
from nopair.types import Question

TWO = "Was this carried out: paint it red? Before: {reference} After: {edited} Answer Yes or No."
SWAPPED = "{edited}{reference} Is all that was not named in this rather long instruction the same? Answer Yes or No."
ONE = "Is there a circle? {edited} Answer Yes or No."
REFERENCE = (40, 56)
EDITED = (50, 33)


def _ask(*prompts: str) -> list[Question]:
    return [Question("edit", prompt, wants_yes=True) for prompt in prompts]


def _images(batch: int, size: tuple[int, int] = EDITED) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *size)) / 255


def _file(pixels: Tensor) -> Image.Image:
    return Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy())


def _prompts(family: str) -> tuple[str, ...]:
    """LLaVA-OneVision's processor makes tiles of a single image, which nopair does not; see the family's own tests."""
    return (TWO, SWAPPED) if family == "llava_onevision" else (TWO, SWAPPED, ONE)


def _library_odds(judge: VisionLanguageJudge, case: Any, prompt: str, reference: Tensor, edited: Tensor) -> Tensor:
    """One question alone through the library's plain forward, tokens and all from its own processor.

    Pixels are prepared by us, so that the processor's rounding to 8 bits is out of the comparison.
    """
    images = {"{reference}": reference, "{edited}": edited}
    inputs = case.library(judge.tokenizer, prompt, {place: _file(image) for place, image in images.items()})
    order = sorted((place for place in images if place in prompt), key=prompt.index)
    prepare: Any = judge.family.prepare  # pyright: ignore[reportAttributeAccessIssue]
    pixels = torch.cat([prepare(images[place][None]).flatten() for place in order])
    inputs["pixel_values"] = pixels.view_as(inputs["pixel_values"])
    log_p = judge.model(**inputs).logits[0, -1].double().log_softmax(dim=-1)
    yes, no = (log_p[list(ids)].exp().sum().log() for ids in (judge.answers.yes, judge.answers.no))
    return (yes - no).float()


def test_every_family_has_a_judge(family_judge: VisionLanguageJudge) -> None:
    assert isinstance(family_judge, Judge)
    assert isinstance(family_judge.family, Family)
    assert not family_judge.model.training
    assert not any(parameter.requires_grad for parameter in family_judge.model.parameters())


def test_prompts_are_the_familys_token_for_token(family: str, family_judge: VisionLanguageJudge, case: Any) -> None:
    for prompt in _prompts(family):
        images = {"{reference}": _file(_images(1, REFERENCE)[0]), "{edited}": _file(_images(1)[0])}
        inputs = case.library(family_judge.tokenizer, prompt, images)
        assert family_judge.encode_prompt(prompt, EDITED, REFERENCE) == inputs["input_ids"][0].tolist()


def test_answers_are_the_librarys_own(family: str, family_judge: VisionLanguageJudge, case: Any) -> None:
    """All asked at once, rows padded and features shared, against each question alone in the plain forward."""
    prompts = _prompts(family)
    reference, edited = _images(2, REFERENCE), _images(2)
    ours = family_judge.yes_minus_no(reference, edited, [_ask(*prompts), _ask(*reversed(prompts))])
    for sample, asked in enumerate((prompts, prompts[::-1])):
        theirs = [_library_odds(family_judge, case, prompt, reference[sample], edited[sample]) for prompt in asked]
        torch.testing.assert_close(ours[sample], torch.stack(theirs), rtol=0, atol=2e-5)


def test_internvl_with_a_qwen3_text_model_answers_as_the_library(
    sibling: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """As InternVL3.5 has; its gradient reaches the edited image."""
    case = sibling("judges/families.py").INTERNVL3_5
    case.save(tmp_path)
    judge = load_judge(tmp_path)
    assert judge.model.config.text_config.model_type == "qwen3"  # pyright: ignore
    prompts, reference, edited = _prompts("internvl"), _images(1, REFERENCE), _images(1).requires_grad_()
    odds = judge.yes_minus_no(reference, edited, [_ask(*prompts)])
    theirs = [_library_odds(judge, case, prompt, reference[0], edited[0].detach()) for prompt in prompts]
    torch.testing.assert_close(odds[0], torch.stack(theirs), rtol=0, atol=2e-5)
    (gradient,) = torch.autograd.grad(odds.sum(), edited)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_the_order_of_the_images_counts(family_judge: VisionLanguageJudge) -> None:
    one, other = _images(1), _images(1)
    there, back = (family_judge.yes_minus_no(*pair, [_ask(TWO)]) for pair in ((one, other), (other, one)))
    assert (there - back).abs() > 1e-3


def test_from_files_the_answer_is_the_familys_within_its_rounding(family_judge: VisionLanguageJudge, case: Any) -> None:
    reference, edited = _images(1, REFERENCE), _images(1)
    files = {"{reference}": _file(reference[0]), "{edited}": _file(edited[0])}
    inputs = case.library(family_judge.tokenizer, TWO, files)
    logits = family_judge.model(**inputs).logits[0, -1]
    yes, no = (logits[list(ids)].logsumexp(dim=0) for ids in (family_judge.answers.yes, family_judge.answers.no))
    ours = family_judge.yes_minus_no(reference, edited, [_ask(TWO)])
    torch.testing.assert_close(ours[0, 0], yes - no, rtol=0, atol=3e-2)


def test_the_edited_image_gets_a_gradient_everywhere_and_nothing_else_does(family_judge: VisionLanguageJudge) -> None:
    reference, edited = _images(2, REFERENCE).requires_grad_(), _images(2).clamp(0.2, 0.8).requires_grad_()
    odds = family_judge.yes_minus_no(reference, edited, [_ask(TWO, ONE), _ask(SWAPPED)])
    towards, other = torch.autograd.grad(odds.sum(), [edited, reference], allow_unused=True)
    assert other is None
    assert towards.isfinite().all()
    assert (towards != 0).all()


def test_the_gradient_is_the_derivative(family_judge: VisionLanguageJudge) -> None:
    reference, edited = _images(1), _images(1).clamp(0.3, 0.7).requires_grad_()
    ask = [_ask(TWO, ONE)]
    (gradient,) = torch.autograd.grad(family_judge.yes_minus_no(reference, edited, ask).sum(), edited)
    step = 0.1 * gradient.sign()
    with torch.no_grad():
        ends = [family_judge.yes_minus_no(reference, edited + s * step, ask).sum() for s in (0.01, -0.01)]
    torch.testing.assert_close((ends[0] - ends[1]) / 0.02, (gradient * step).sum(), rtol=0.05, atol=0)


@pytest.mark.parametrize("size", [(50, 33), (23, 71)])
def test_an_answer_does_not_depend_on_its_neighbours(family_judge: VisionLanguageJudge, size: tuple[int, int]) -> None:
    """Rows of other lengths and numbers of images, also none, in one batch or alone: values and gradients."""
    rows = [_ask(ONE, SWAPPED), _ask(TWO), [], _ask(SWAPPED, ONE, TWO)]
    reference, edited = _images(4, REFERENCE), _images(4, size).clamp(0.1, 0.9).requires_grad_()
    together = family_judge.yes_minus_no(reference, edited, rows)
    assert together.shape == (4, 3)
    assert together.dtype == torch.float32
    (gradient,) = torch.autograd.grad(together.sum(), edited)
    for i, row in enumerate(rows):
        alone = edited[i : i + 1].detach().requires_grad_()
        answers = family_judge.yes_minus_no(reference[i : i + 1], alone, [row])
        torch.testing.assert_close(together[i, : len(row)], answers[0], rtol=0, atol=2e-5)
        assert together[i, len(row) :].eq(0).all(), "not asked is zero"
        expected = torch.autograd.grad(answers.sum(), alone)[0] if row else torch.zeros_like(alone)
        torch.testing.assert_close(gradient[i : i + 1], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("token", "moves"), [("<pad>", False), ("?", True)])
def test_padding_does_not_act(
    folders: dict[str, Path], family: str, family_judge: VisionLanguageJudge, token: str, moves: bool
) -> None:
    reference, edited, rows = _images(2), _images(2), [_ask(ONE), _ask(SWAPPED, TWO)]
    other = load_judge(folders[family])
    with torch.no_grad():
        # Every second number, so that no normalisation takes it out again.
        other.model.get_input_embeddings().weight[other.tokenizer.convert_tokens_to_ids(token), ::2] += 10
    change = other.yes_minus_no(reference, edited, rows) - family_judge.yes_minus_no(reference, edited, rows)
    assert bool(change[0, 0].abs() > 1e-4) is moves
    assert bool(change.eq(0).all()) is not moves


def test_images_are_seen_once_and_all_questions_put_at_once(family_judge: VisionLanguageJudge, case: Any) -> None:
    model = family_judge.model
    seen: list[bool] = []
    asked: list[int] = []
    answered: list[tuple[int, ...]] = []
    hooks = [
        case.vision(model).register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled())),
        case.language(model).register_forward_pre_hook(
            lambda _module, _args, named: asked.append(len(named["inputs_embeds"])), with_kwargs=True
        ),
        model.lm_head.register_forward_pre_hook(lambda _module, args: answered.append(tuple(args[0].shape[:2]))),
    ]
    for rows, looks in (
        ([_ask(TWO, SWAPPED), _ask(ONE, TWO)], [True, False]),
        ([_ask(ONE), _ask(ONE, ONE, ONE)], [True]),
    ):
        family_judge.yes_minus_no(_images(2, REFERENCE), _images(2), rows)
        assert seen == looks, "the edited image with gradient, the reference without, and only if it is asked about"
        assert asked == [4]
        assert answered == [(4, 1)], "logits at one position"
        for calls in (seen, asked, answered):
            calls.clear()
    assert family_judge.yes_minus_no(_images(2), _images(2), [[], []]).shape == (2, 0)
    assert not seen + asked
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("level", ["black", "grey", "white"])
def test_uniform_images_are_judged(family_judge: VisionLanguageJudge, case: Any, level: str) -> None:
    """Also grey whose normalised input is all zero; in a batch of others and alone."""
    colour = {"black": [0.0] * 3, "grey": case.image_processor.image_mean, "white": [1.0] * 3}[level]
    uniform = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, *EDITED)
    edited = torch.cat([_images(1), uniform, _images(1)]).requires_grad_()
    answers = family_judge.yes_minus_no(uniform.repeat(3, 1, 1, 1), edited, [_ask(TWO, ONE)] * 3)
    alone = family_judge.yes_minus_no(uniform, uniform, [_ask(TWO, ONE)])
    torch.testing.assert_close(answers[1], alone[0], rtol=0, atol=2e-5)
    assert (answers[0] - answers[1]).abs().min() > 1e-4
    (gradient,) = torch.autograd.grad(answers.sum(), edited)
    assert gradient.isfinite().all()
    assert (gradient[1] != 0).any()


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_smolvlm_sees_what_the_library_drops(judges: dict[str, VisionLanguageJudge], name: str) -> None:
    """Without mean and deviation, black is the all-zero input that the library takes for padding."""
    shipped: Any = judges[name].family
    judge = VisionLanguageJudge(
        dataclasses.replace(shipped, normalise=Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        judges[name].tokenizer,
    )
    library: Any = judge.model
    black, dark = torch.zeros(1, 3, *EDITED), torch.full((1, 3, *EDITED), 1e-6)
    both = torch.stack([shipped.prepare(_images(1)), torch.zeros(1, 3, 32, 32)], dim=1)
    assert len(library.get_image_features(both).pooler_output[0]) == 16, "else the library drops nothing any more"
    first = _images(1)
    answers = judge.yes_minus_no(black.repeat(3, 1, 1, 1), torch.cat([first, black, dark]), [_ask(TWO, ONE)] * 3)
    torch.testing.assert_close(answers[1], answers[2], rtol=0, atol=1e-3)
    torch.testing.assert_close(answers[0], judge.yes_minus_no(black, first, [_ask(TWO, ONE)])[0], rtol=0, atol=2e-5)
    assert (answers[0] - answers[1]).abs().min() > 1e-3


def test_half_precision_weights_give_answers_in_full_precision(
    folders: dict[str, Path], family: str, family_judge: VisionLanguageJudge
) -> None:
    half = load_judge(folders[family], dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    reference, edited = _images(2), _images(2).requires_grad_()
    rows = [_ask(TWO), _ask(ONE)]
    answers = half.yes_minus_no(reference, edited, rows)
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, family_judge.yes_minus_no(reference, edited, rows), rtol=0, atol=0.3)
    assert torch.autograd.grad(answers.sum(), edited)[0].dtype == torch.float32


@pytest.mark.parametrize("words", ["No image at all.", "", "{edited} and a smuggled IMAGE"])
def test_a_prompt_that_does_not_fit_is_refused(family_judge: VisionLanguageJudge, words: str) -> None:
    image: Any = family_judge.tokenizer.convert_ids_to_tokens(family_judge.family.marks.image)
    with pytest.raises(JudgeError, match="question") as caught:
        family_judge.yes_minus_no(_images(1), _images(1), [_ask(words.replace("IMAGE", image))])
    assert "\n" not in str(caught.value)


def test_rows_must_match_the_batch(family_judge: VisionLanguageJudge) -> None:
    with pytest.raises(ValueError, match="rows of questions"):
        family_judge.yes_minus_no(_images(2), _images(2), [_ask(ONE)])


def _configured(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return apply


def _processor(**settings: object) -> Callable[[Path], object]:
    return _configured("preprocessor_config.json", lambda config: config.update(settings))


def _vision(**settings: object) -> Callable[[Path], object]:
    return _configured("config.json", lambda config: config["vision_config"].update(settings))


def _rename(token: str) -> Callable[[Path], object]:
    """Takes a token out of the vocabulary under its name."""
    return lambda folder: [
        path.write_text(path.read_text().replace(token, token.replace("<", "<no-")))
        for path in (folder / "tokenizer.json", folder / "tokenizer_config.json")
    ]


def _shorten(config: dict) -> None:
    config["text_config"] |= {"num_hidden_layers": 1}
    config["text_config"].pop("layer_types", None)  # one for each layer


NO_MERGES = _configured("tokenizer.json", lambda config: config["model"].update(merges=[]))
BROKEN = {
    "answers spelt letter by letter": ("*", NO_MERGES, JudgeError, "Yes is not one token"),
    "an image token beyond the vocabulary": (
        "*", _configured("config.json", lambda c: c.update(image_token_id=99_999)), ModelError, "no token 99999",
    ),
    "fewer layers": (
        "*", _configured("config.json", _shorten), ModelError, "more layers than its config.json says, e.g. .*layers.1"
    ),
    "another resampling": ("*", _processor(resample=2), ModelError, "resample"),
    "no padding token": (
        "*", _configured("tokenizer_config.json", lambda c: c.pop("pad_token")), ModelError, "padding token",
    ),
    "tiles of another size": ("internvl", _processor(size={"height": 64, "width": 64}), ModelError, "size"),
    "oblong tiles": ("internvl", _vision(image_size=[32, 16]), ModelError, "not squares|other shapes"),
    "no start of an image": ("internvl", _rename("<img>"), ModelError, "no token <img>"),
    "another patch": ("qwen2_5_vl", _processor(patch_size=8), ModelError, "patch_size"),
    "another merge": ("qwen3_vl", _processor(merge_size=1), ModelError, "merge_size"),
    "another side": ("smolvlm", _processor(max_image_size={"longest_edge": 64}), ModelError, "max_image_size"),
    "no longest edge": ("smolvlm", _processor(size={"height": 48, "width": 48}), ModelError, "longest_edge"),
    "no global image": ("smolvlm", _rename("<global-img>"), ModelError, "no token <global-img>"),
}  # fmt: skip


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_folder_gets_one_line(folders: dict[str, Path], tmp_path: Path, problem: str) -> None:
    name, damage, kind, words = BROKEN[problem]
    for family in sorted(FAMILIES) if name == "*" else [name]:
        copy = shutil.copytree(folders[family], tmp_path / family)
        damage(copy)
        with pytest.raises(kind, match=words) as caught:
            load_judge(copy)
        assert "\n" not in str(caught.value)


def test_an_unknown_family_is_told_which_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    with pytest.raises(
        ModelError, match="'internvl_chat'; nopair knows idefics3, internvl, llava_onevision, qwen2_5_vl, "
    ):
        load_judge(tmp_path)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], scope="session")
def test_an_image_too_long_is_refused(judges: dict[str, VisionLanguageJudge], family: str) -> None:
    with pytest.raises(JudgeError, match="cannot take images of 1x300"):
        judges[family].yes_minus_no(_images(1), _images(1, (1, 300)), [_ask(ONE)])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], scope="session")
def test_positions_have_three_axes(judges: dict[str, VisionLanguageJudge], family: str) -> None:
    """The same tokens in a grid of another shape are another image: 2 x 8 tokens or 8 x 2."""
    wide = torch.full((1, 3, 16, 64), 0.3)
    tall = wide.transpose(2, 3)
    assert judges[family].encode_prompt(ONE, (16, 64)) == judges[family].encode_prompt(ONE, (64, 16))
    answers = [judges[family].yes_minus_no(pixels, pixels, [_ask(ONE)]) for pixels in (wide, tall)]
    assert (answers[0] - answers[1]).abs() > 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_need_bitsandbytes_and_4_bits_a_gpu(
    folders: dict[str, Path], family: str, bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nopair\[quant\]'"):
        load_judge(folders[family], bits=bits)
    if bits == 4:
        monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ModelError, match="in 4 bits needs a CUDA GPU; set bits to null or 8"):
            load_judge(folders[family], bits=bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_language_model_is_quantised(
    folders: dict[str, Path],
    family: str,
    family_judge: VisionLanguageJudge,
    case: Any,
    bits: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the library's own rule for names; tests/test_quantised.py sees what it does to the weights."""
    wanted: dict[str, Any] = {}

    def capture(_folder: Path, **options: Any) -> None:
        wanted.update(options)
        raise OSError("far enough")

    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", capture)
    with pytest.raises(ModelError, match="far enough"):
        load_judge(folders[family], torch.bfloat16, bits=bits)
    quantisation = wanted["quantization_config"]
    assert (quantisation.load_in_4bit, quantisation.load_in_8bit) == (bits == 4, bits == 8)
    assert quantisation.bnb_4bit_compute_dtype == torch.bfloat16
    assert wanted["device_map"] == {"": 0}
    model = family_judge.model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = {n for n in linear if should_convert_module(n, quantisation.llm_int8_skip_modules)}
    in_language = set(case.language(model).modules())
    assert chosen == {name for name, module in linear.items() if module in in_language}


def test_recomputing_keeps_less_switches_no_dropout_on_and_changes_nothing(
    folders: dict[str, Path], family: str
) -> None:
    judge = load_judge(folders[family])
    for module in judge.model.modules():  # in train mode, half of everything would be dropped
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    reference, edited = _images(2, REFERENCE), _images(2)

    def ask() -> tuple[Tensor, Tensor, int]:
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        given = edited.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            odds = judge.yes_minus_no(reference, given, [_ask(TWO, ONE), _ask(SWAPPED)])
        (gradient,) = torch.autograd.grad(odds.sum(), given)
        return odds.detach(), gradient, kept

    odds, gradient, much = ask()
    judge.checkpoint()
    same_odds, same_gradient, little = ask()
    assert torch.equal(same_odds, odds)
    assert torch.equal(same_gradient, gradient)
    assert little < 0.7 * much
