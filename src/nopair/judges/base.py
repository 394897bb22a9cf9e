"""What training asks of a judge."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from nopair.types import Question


@runtime_checkable
class Judge(Protocol):
    """Looks at a reference and an edited image and answers Yes/No questions about them.

    A judge is frozen: it gives gradients to the edited pixels and to nothing else.
    """

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """log p(Yes) - log p(No) at the answer position, in fp32.

        Args:
            reference: RGB in [0, 1], seen without gradient.
            edited: RGB; values outside [0, 1] are seen clamped, as a saved image would be. Carries the gradient.
            questions: for each sample its own questions. `question` is the largest number of them; a shorter row is
                filled with zeros, which mean "not asked", not "undecided". A number beyond the questions asked carries
                no gradient.

        A sample's answers do not depend on the other samples of the batch.

        Raises:
            JudgeError: a question cannot be put to this judge.
        """
        ...


@runtime_checkable
class VocabularyJudge(Judge, Protocol):
    """A judge that also tells what else it could have said, for the ablation of Eq. 12."""

    @property
    def answer_tokens(self) -> tuple[int, int]:
        """Token ids of Yes and No, as they are most simply written."""
        ...

    def answer_logits(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question vocabulary"]:
        """Logits of the answer position, in fp32; else as `yes_minus_no`."""
        ...

    def odds(self, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows"]:
        """What `yes_minus_no` makes of such logits."""
        ...
