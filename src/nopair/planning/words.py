"""A tokenizer for models whose own is not here: one token for each word and each run of punctuation.

Byte-pair vocabularies of today's models cut English into about as many. What is counted, not which tokens they are,
makes the cost.
"""

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

IMAGE: Final = "<image>"
_COMMON: Final = ["<unk>", "<pad>", "<end>", "Yes", "No"]
_CHAT: Final = (
    "{% for message in messages %}user : {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %} <end> {% endfor %}assistant : "
)


def word_tokenizer(marks: Sequence[str] = (), longest: int = 100_000) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, which knows Yes and No, `IMAGE` and `marks`, and gives every other word one id.

    `longest` is its `model_max_length`.
    """
    vocabulary = {word: index for index, word in enumerate(_COMMON)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=longest,
        additional_special_tokens=[IMAGE, *marks],
    )  # fmt: skip
    fast.chat_template = _CHAT
    return fast


def words(count: int) -> str:
    """A text of so many tokens."""
    return " ".join(["word"] * count)
