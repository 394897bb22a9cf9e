"""The questions put to a judge, as versioned data.

A question set maps a category of edit to the questions asked about it. Its version travels in every editor, and in
every checkpoint of a phase that asks, because an editor is only as good as the questions it was trained under. Text
stands before the images: a causal language model then reads the images already knowing what is asked of them. Where a
family's template puts images first, whatever the order (LLaVA-OneVision's published one does), words stand in the
images' places (`nopair.judges.prompts.named`).
"""

from typing import Final

from nopair.types import Question

VERSION: Final = "v2"
"""What an editor says it was trained under, for a reader to know. Training goes on only under the same.

v2 asks of `free-form` whether the subject is the same, where v1 asked whether all else is unchanged. Else they agree.
"""

_EDIT: Final = Question(
    "edit",
    "Was this instruction carried out: {instruction}? Before: {reference} After: {edited} Answer Yes or No.",
    wants_yes=True,
)
_IDENTITY: Final = Question(
    "identity",
    "Is all else unchanged after this instruction: {instruction}? Before: {reference} After: {edited} Answer Yes or "
    "No.",
    wants_yes=True,
)
_STILL_THERE: Final = Question(
    "edit",
    "Is there a {subject} in this image? {edited} Answer Yes or No.",
    wants_yes=False,
)
_SAME: Final = Question(
    "identity",
    "Is the second image the same as the first? Before: {reference} After: {edited} Answer Yes or No.",
    wants_yes=True,
)
_SAME_SUBJECT: Final = Question(
    "identity",
    "Is the {subject} in the second image the same as in the first? Before: {reference} After: {edited} Answer Yes or "
    "No.",
    wants_yes=True,
)

DEFAULT: Final = (_EDIT, _IDENTITY)
BY_CATEGORY: Final = {
    "remove": (_STILL_THERE, _IDENTITY),
    "nothing": (_SAME,),
    "free-form": (_EDIT, _SAME_SUBJECT),
}
"""Categories that do not use `DEFAULT`. Removal asks about the edited image alone; doing nothing asks only for
identity; a subject in a new scene must be the same, and nothing else."""


def templates_for(category: str) -> tuple[Question, ...]:
    """What is asked about edits of a category, with `{instruction}` and `{subject}` still to be filled in."""
    return BY_CATEGORY.get(category, DEFAULT)


def fill(template: Question, instruction: str, subject: str) -> Question:
    """A template with its words filled in and the image places `{reference}`, `{edited}` kept."""
    return Question(
        template.kind,
        template.prompt.replace("{instruction}", instruction).replace("{subject}", subject),
        template.wants_yes,
    )


def questions_for(category: str, instruction: str, subject: str) -> tuple[Question, ...]:
    """The questions about one edit, with the words filled in and the image places `{reference}`, `{edited}` kept."""
    return tuple(fill(template, instruction, subject) for template in templates_for(category))
