"""What a judge may write, and what is read of it: numbers that are there without doubt, or nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.evaluation.scorers.reply import Unreadable, read_scores
from nopair.evaluation.scorers.rubric import Template

JSON = Template(name="SC", shows=("source", "edited"), scores=2, prompt="p")
LINES = Template(name="edit", shows=("source", "edited"), scores=3, prompt="p", reply="lines")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('{"score": [8, 7], "reasoning": "fine"}', (8, 7)),
        (
            'Sure! Here it is:\n```json\n{"score": [0, 10.0], "reasoning": "{odd} \\"x\\""}\n```\nAnything else?',
            (0, 10),
        ),
        ('{"reasoning": "天空变成了粉色", "score": [6.5, 3]}。谢谢！', (6.5, 3)),
        ('{"score": [8, 7]} {"score": [8, 7], "reasoning": "once more"}', (8, 7)),
        ('{ not json } {"score": [1, 2]}', (1, 2)),
        ('{"result": {"score": [1, 2]}}', (1, 2)),
        ('<think>{"score": [9, 9]} or less?</think>{"score": [4, 4]}', (4, 4)),
    ],
)
def test_what_is_there_is_read(text: str, numbers: tuple[float, ...]) -> None:
    assert read_scores(text, JSON, 0, 10) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON object"),
        ("I am sorry, I cannot help with that.", "no JSON object"),
        ("score: [8, 7]", "no JSON object"),
        ('{"score": [8, 7], "reasoning": "cut of', "no JSON object"),
        ('{"marks": [8, 7]}', "no JSON object"),
        ('{"score": [8, 7]} no, {"score": [2, 7]}', "several answers"),
        ('{"score": [8, 7], "score": [1, 1]}', "several answers"),
        ('{"score": [8]}', "1 numbers instead of 2"),
        ('{"score": [8, 7, 6]}', "3 numbers instead of 2"),
        ('{"score": 8}', "1 numbers instead of 2"),
        ('{"score": []}', "0 numbers instead of 2"),
        ('{"score": ["8", "7"]}', "not a number"),
        ('{"score": [true, 7]}', "not a number"),
        ('{"score": null}', "not a number"),
        ('{"score": {"a": 8, "b": 7}}', "not a number"),
        ('{"score": [NaN, 7]}', "not finite"),
        ('{"score": [Infinity, 7]}', "not finite"),
        (f'{{"score": [5, 1{"0" * 400}]}}', "not finite"),
        (f'{{"score": [5, 1{"0" * 5000}]}}', "no JSON object"),
        ('{"score": [11, 7]}', "11 is outside 0 to 10"),
        ('{"score": [8, -1]}', "-1 is outside 0 to 10"),
        ('{"score": [8, 100]}', "100 is outside 0 to 10"),
        ("[" * 100_000, "no JSON object"),
        ('{"a":' * 3000, "no JSON object"),
    ],
)
def test_what_is_doubtful_is_not(text: str, why: str) -> None:
    found = read_scores(text, JSON, 0, 10)
    assert isinstance(found, Unreadable)
    assert why in found.why


@given(st.text(), st.text(), st.lists(st.integers(0, 10), min_size=2, max_size=2))
def test_words_around_change_nothing(before: str, after: str, numbers: list[int]) -> None:
    clean = [part.replace("{", "(").replace("</think>", "") for part in (before, after)]
    text = clean[0] + json.dumps({"score": numbers, "reasoning": before + after}).replace("</think>", "") + clean[1]
    assert read_scores(text, JSON, 0, 10) == tuple(numbers)


@given(st.text())
def test_any_text_is_numbers_in_range_or_unreadable(text: str) -> None:
    for template in (JSON, LINES):
        found = read_scores(text, template, 1, 5)
        assert isinstance(found, Unreadable) or (
            len(found) == template.scores and all(1 <= number <= 5 for number in found)
        )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Brief reasoning: no fur.\nPrompt Compliance: 1\nVisual Seamlessness: 4\nDetail Fidelity: 5", (1, 4, 5)),
        ("**Reason**: a: b\n- **Style**: 2\n2. Content： 3/5\n3) Quality: 4.0.", (2, 3, 4)),
    ],
)
def test_lines_are_read(text: str, numbers: tuple[float, ...]) -> None:
    assert read_scores(text, LINES, 1, 5) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Prompt Compliance: 1\nVisual Seamlessness: four\nDetail Fidelity: 5", "2 numbers instead of 3"),
        ("A: 1\nB: 2\nC: 6", "6 is outside"),
        ("A: 1\nB: 2\nC: -3", "2 numbers instead of 3"),
        ("A: 1\nB: 2\nC: 3\nD: 4", "4 numbers instead of 3"),
        ("12:30: 4", "no line"),
        ("nothing", "no line"),
    ],
)
def test_doubtful_lines_are_not(text: str, why: str) -> None:
    found = read_scores(text, LINES, 1, 5)
    assert isinstance(found, Unreadable)
    assert why in found.why
