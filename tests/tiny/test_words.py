"""The tiny tokenizers."""

import random

from nopair.tiny.words import END, IMAGE, START, train_tokenizer
from nopair.world.edits import any_edit
from nopair.world.scenes import caption


def test_every_word_is_one_token_and_a_prompt_fits_the_bases_padding() -> None:
    tokenizer = train_tokenizer(0)
    rng = random.Random(7)
    for _ in range(200):
        edit = any_edit(rng)
        for text in (edit.instruction, caption(edit.source), caption(edit.target)):
            assert len(tokenizer.tokenize(text)) == len(text.replace(",", " ,").split())
            chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
            assert chat == f"{START}{text}{END}"
            assert len(tokenizer(chat)["input_ids"]) <= 32
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_images_stay_where_the_content_has_them() -> None:
    tokenizer = train_tokenizer(0, (IMAGE,))
    parts = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " b"}]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert chat == f"{START}a {IMAGE} b{END}"
    assert tokenizer(chat)["input_ids"].count(tokenizer.convert_tokens_to_ids(IMAGE)) == 1


def test_the_same_seed_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(0).get_vocab() == train_tokenizer(0).get_vocab()
