"""A judge's model that writes, with random weights of every family: the library's own words, without its processors."""

import asyncio
import io
import math
from typing import Any

import pytest
import torch
from PIL import Image

from nopair.endpoints.messages import Ask, Picture, Reply, yes_probability
from nopair.errors import RefusedError
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.judges.writer import Writer


def image(seed: int) -> Image.Image:
    levels = torch.randint(0, 256, (40, 56, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def picture(seed: int) -> Picture:
    encoded = io.BytesIO()
    image(seed).save(encoded, "PNG")
    return Picture(encoded.getvalue(), "image/png")


def ask(writer: Writer, question: Ask) -> Reply:
    return asyncio.run(writer.chat(question))


@pytest.fixture
def writer(family_judge: VisionLanguageJudge) -> Writer:
    return Writer("toy", family_judge)


@pytest.mark.parametrize("length", [1, 6])
def test_it_writes_what_the_librarys_processor_and_model_write(
    writer: Writer, family_judge: VisionLanguageJudge, case: Any, length: int
) -> None:
    """About two images. Of a single one, LLaVA-OneVision's own processor makes several views; a judge has one."""
    tokenizer: Any = family_judge.tokenizer
    for seed in range(3):
        images = {"{reference}": image(seed), "{edited}": image(seed + 3)}
        inputs = case.library(tokenizer, "Be brief.\n\n{reference}And{edited}What is it?", images)
        made = family_judge.model.generate(**inputs, do_sample=False, max_new_tokens=length)
        words = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        reply = ask(
            writer, Ask("Be brief.", (picture(seed), "And", picture(seed + 3), "What is it?"), max_tokens=length)
        )
        assert reply.text == words
        assert reply.usage.input_tokens == inputs["input_ids"].shape[1]


def test_a_model_writes_and_tells_its_first_tokens(writer: Writer) -> None:
    question = Ask("Answer Yes or No.", (picture(1), "Is there a circle?"), max_tokens=1, top=400)
    reply = ask(writer, question)
    probability = yes_probability(reply.first)
    assert probability is not None
    assert 0 < probability < 1
    assert sum(math.exp(value) for _, value in reply.first) <= 1 + 1e-4
    assert reply.usage.output_tokens == 1
    assert ask(writer, question) == reply
    other = ask(writer, Ask(question.system, (picture(2), "Is there a circle?"), max_tokens=1, top=400))
    assert other.first != reply.first, "it looks at the picture"
    assert writer.usage.requests == 3


def test_it_begins_with_the_likeliest_token_that_it_tells(writer: Writer, family_judge: VisionLanguageJudge) -> None:
    special: Any = family_judge.tokenizer.all_special_tokens
    for seed in range(5):
        reply = ask(writer, Ask("s", (picture(seed), "q"), max_tokens=1, top=3))
        (likeliest, first), (_, second), _ = reply.first
        assert first > second
        assert reply.text == ("" if likeliest in special else likeliest)


def test_sampling_follows_the_seed_and_leaves_the_callers_chance_alone(writer: Writer) -> None:
    before = torch.random.get_rng_state()
    texts = [ask(writer, Ask("s", (picture(1),), max_tokens=8, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_words_without_a_picture_can_be_asked(writer: Writer) -> None:
    assert ask(writer, Ask("s", ("words alone",), max_tokens=2)).usage.output_tokens >= 1


def test_an_image_token_among_the_words_is_refused(writer: Writer, family_judge: VisionLanguageJudge) -> None:
    word: Any = family_judge.tokenizer.convert_ids_to_tokens(family_judge.family.marks.image)
    with pytest.raises(RefusedError):
        ask(writer, Ask("s", (picture(1), f"a {word} b")))
