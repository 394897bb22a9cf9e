"""The questions of `nopair.judges.questions` in other words that mean the same: to measure a judge with, not to train.

A judge whose verdict turns with the wording has learnt a sentence, not a question.
"""

from typing import Final

from nopair.types import Question

_OTHERS: Final = {
    "Was this instruction carried out: {instruction}? Before: {reference} After: {edited} Answer Yes or No.": (
        "Does the second image show the first one after somebody did this: {instruction}? First: {reference} "
        "Second: {edited} Answer Yes or No.",
        "Somebody was told to {instruction}. Did they do it? Original: {reference} Result: {edited} Answer Yes or No.",
    ),
    "Is all else unchanged after this instruction: {instruction}? Before: {reference} After: {edited} Answer Yes or "
    "No.": (
        "Apart from what this asks for, do both images show the same: {instruction}? First: {reference} "
        "Second: {edited} Answer Yes or No.",
        "Somebody was told to {instruction}. Did they leave everything else as it was? Original: {reference} "
        "Result: {edited} Answer Yes or No.",
    ),
    "Is there a {subject} in this image? {edited} Answer Yes or No.": (
        "Does this image show a {subject}? {edited} Answer Yes or No.",
        "Can a {subject} be seen here? {edited} Answer Yes or No.",
    ),
    "Is the second image the same as the first? Before: {reference} After: {edited} Answer Yes or No.": (
        "Do both images show the same? First: {reference} Second: {edited} Answer Yes or No.",
        "Did everything stay as it was? Original: {reference} Result: {edited} Answer Yes or No.",
    ),
    "Is the {subject} in the second image the same as in the first? Before: {reference} After: {edited} Answer Yes or "
    "No.": (
        "Do both images show the same {subject}? First: {reference} Second: {edited} Answer Yes or No.",
        "Does the {subject} still look as it did, wherever it is? Original: {reference} Result: {edited} Answer Yes or "
        "No.",
    ),
}
"""Other wordings by the shipped one. The right answer stays the same, and the question stands before the images."""


def other_wordings(template: Question) -> tuple[Question, ...]:
    """The template in other words, `{instruction}` and `{subject}` still to be filled in; none if we know none."""
    return tuple(Question(template.kind, prompt, template.wants_yes) for prompt in _OTHERS.get(template.prompt, ()))
