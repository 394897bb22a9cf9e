"""Which tokens mean Yes and No."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nopair.errors import JudgeError
from nopair.judges.tokens import answers_of


def _words(*words: str, rewrite: tuple[str, str] | None = None) -> PreTrainedTokenizerFast:
    """One token per known word, white space dropped."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("[UNK]", *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if rewrite is not None:
        tokenizer.normalizer = normalizers.Replace(*rewrite)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def _pieces(*pieces: str, space: str) -> PreTrainedTokenizerFast:
    """Pieces that never merge, as a tokenizer has them for words it was not trained on."""
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_all_spellings_of_one_token_count(judge) -> None:
    answers = answers_of(judge.tokenizer)
    assert {judge.tokenizer.decode([i]) for i in answers.yes} == {"Yes", " Yes", "yes", " yes"}
    assert {judge.tokenizer.decode([i]) for i in answers.no} == {"No", " No", "no", " no"}


def test_one_spelling_is_enough() -> None:
    tokenizer = _words("Yes", "No", "Maybe")
    answers = answers_of(tokenizer)
    assert tokenizer.convert_ids_to_tokens([*answers.yes, *answers.no]) == ["Yes", "No"]


def test_answers_with_one_token_in_common_are_ambiguous() -> None:
    with pytest.raises(JudgeError, match="share"):
        answers_of(_words("yes", "no", "Yes", "NO", rewrite=("No", "Yes")))


def test_answers_that_begin_alike_are_ambiguous() -> None:
    with pytest.raises(JudgeError, match="both begin"):
        answers_of(_pieces("_", *"YesNo", space="_"))


def test_unknown_answers_are_ambiguous() -> None:
    with pytest.raises(JudgeError, match="both begin"):
        answers_of(_words("Maybe"))


@pytest.mark.parametrize(("known", "absent"), [("Yes", "No"), ("No", "Yes")])
def test_an_absent_answer_is_named(known: str, absent: str) -> None:
    with pytest.raises(JudgeError, match=f"^{absent} is not one token"):
        answers_of(_words(known, "Maybe"))
