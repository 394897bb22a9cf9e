"""The questions of `nopair.judges.questions` in other words that mean the same: to measure a judge with, not to train.

A judge whose verdict turns with the wording has learnt a sentence, not a question.
"""

from typing import Final

from nopair.judges.questions import BY_CATEGORY, DEFAULT
from nopair.types import Question

_OTHERS: Final = {
    "Was this instruction carried out: {instruction}? Before: {reference} After: {edited} Answer Yes or No.": (
        "The instruction was: {instruction}. First image: {reference} Second image: {edited} Does the second image "
        "show the first one with this done? Answer Yes or No.",
        "Has somebody who was told to {instruction} done so? Original: {reference} Result: {edited} Answer Yes or No.",
    ),
    "Is all else unchanged after this instruction: {instruction}? Before: {reference} After: {edited} Answer Yes or "
    "No.": (
        "The instruction was: {instruction}. First image: {reference} Second image: {edited} Apart from that, do both "
        "images show the same? Answer Yes or No.",
        "Somebody was told to {instruction}. Original: {reference} Result: {edited} Did everything that this does not "
        "concern stay as it was? Answer Yes or No.",
    ),
    "Is there a {subject} in this image? {edited} Answer Yes or No.": (
        "Does this image show a {subject}? {edited} Answer Yes or No.",
        "Look at this image: {edited} Can a {subject} be seen in it? Answer Yes or No.",
    ),
    "Is the second image the same as the first? Before: {reference} After: {edited} Answer Yes or No.": (
        "First image: {reference} Second image: {edited} Do both images show the same? Answer Yes or No.",
        "Original: {reference} Result: {edited} Did everything stay as it was? Answer Yes or No.",
    ),
}
"""Other wordings by the shipped one. The right answer stays the same."""


def other_wordings(template: Question) -> tuple[Question, ...]:
    """The template in other words, `{instruction}` and `{subject}` still to be filled in; none if we know none."""
    return tuple(Question(template.kind, prompt, template.wants_yes) for prompt in _OTHERS.get(template.prompt, ()))


def every_template() -> tuple[Question, ...]:
    """All shipped templates, each once."""
    return tuple(dict.fromkeys(template for row in (DEFAULT, *BY_CATEGORY.values()) for template in row))
