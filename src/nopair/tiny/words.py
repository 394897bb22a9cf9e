"""Tokenizers for the tiny checkpoints: byte-level BPE trained on the world's sentences, in the Hugging Face fast
format."""

import random
from collections.abc import Iterator, Sequence
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nopair.judges.questions import questions_for
from nopair.world.edits import any_edit, random_scene
from nopair.world.scenes import caption

PAD: Final = "<|endoftext|>"
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
IMAGE: Final = "<image>"
VIDEO: Final = "<video>"

# Images and text stay in the order of the content parts, so that the question can stand before the images.
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}" + START + "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}" + END + "{% endfor %}"
)


def sentences(seed: int, count: int) -> Iterator[str]:
    """Captions, instructions and questions about random edits."""
    rng = random.Random(seed)
    for _ in range(count):
        edit = any_edit(rng)
        yield caption(random_scene(rng))
        yield edit.instruction
        for question in questions_for(edit.category, edit.instruction, edit.subject):
            yield question.prompt.replace("{reference}", "").replace("{edited}", "")
        yield "Yes"
        yield "No"


def train_tokenizer(seed: int, extra_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of the world is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=[PAD, START, END, *extra_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(seed, 4000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, END, *extra_tokens],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
    )
