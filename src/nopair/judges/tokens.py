"""Which tokens of a vocabulary mean Yes and No."""

from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from nopair.errors import JudgeError

_VARIANTS: Final = ("{}", " {}")


@dataclass(frozen=True, slots=True)
class Answers:
    """Token ids that answer Yes and No, each non-empty, with none in common. `usual` is (Yes, No) as they are most
    simply written."""

    yes: tuple[int, ...]
    no: tuple[int, ...]
    usual: tuple[int, int]


def answers_of(tokenizer: PreTrainedTokenizerBase) -> Answers:
    """The one-token spellings of both answers: "Yes", "yes", "YES", each also with a space before it.

    A spelling of several tokens is left out: its first token alone may begin other words as well.

    Raises:
        JudgeError: an answer has no spelling of one known token, or both answers share a token.
    """
    yes, no = _one_token_spellings(tokenizer, "yes"), _one_token_spellings(tokenizer, "no")
    if common := set(yes) & set(no):
        raise JudgeError(f"Yes and No share the token {min(common)} in the judge's vocabulary; use another judge")
    first_yes, first_no = _tokens(tokenizer, "Yes")[:1], _tokens(tokenizer, "No")[:1]
    if first_yes == first_no:
        raise JudgeError(
            f"Yes and No both begin with the token {first_yes} in the judge's vocabulary; use another judge"
        )
    for word, found in (("Yes", yes), ("No", no)):
        if not found:
            raise JudgeError(f"{word} is not one token of the judge's vocabulary; use another judge")
    return Answers(tuple(sorted(yes)), tuple(sorted(no)), (yes[0], no[0]))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _one_token_spellings(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[int, ...]:
    """The simplest first."""
    spellings = [form.format(case) for case in (word.capitalize(), word.lower(), word.upper()) for form in _VARIANTS]
    encoded = [_tokens(tokenizer, spelling) for spelling in spellings]
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id))
