"""The few frozen values that flow through nopair, and the axis legend of every tensor.

Axes (jaxtyping names)
    batch, b     samples; any size, no code path is written for 1
    height width pixels; images are RGB float in [0, 1]
    c h w        latent channels, rows, columns; latents are normalised as the base expects them
    step         levels of a noise schedule
    question, q  questions put to a judge about one sample
    token        text tokens

Time: t = 0 is clean, t = 1 is noise; x_t = (1 - t) x0 + t ε; velocity v = ε - x0 (see `nopair.method.flow`).

No type here has a field that could hold an edited image: nopair trains without before/after pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "b c h w"], Float[Tensor, "b"]], Float[Tensor, "b c h w"]]
"""A velocity field with its conditioning already bound: (x_t, t) -> v. All that `method/` knows of a model."""


@dataclass(frozen=True, slots=True)
class EditRecord:
    """One unlabelled photo and what to ask of it.

    `caption` describes the reference, `edited_caption` the wished-for result. `category` is the kind of edit and picks
    the question templates and the guidance scale; `nothing` asks for the reference itself. `subject` is the noun of the
    object the edit is about, or empty.
    """

    reference: Float[Tensor, "3 height width"]
    instruction: str
    caption: str
    edited_caption: str
    category: str
    subject: str = ""


@dataclass(frozen=True, slots=True)
class EditBatch:
    """Records of one size, stacked; every tuple has `batch` entries."""

    reference: Float[Tensor, "batch 3 height width"]
    instructions: tuple[str, ...]
    captions: tuple[str, ...]
    edited_captions: tuple[str, ...]
    categories: tuple[str, ...]
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True, slots=True)
class Text:
    """Encoded prompts of a batch. Row i of `features` holds `lengths[i]` valid tokens, the rest is padding to ignore.

    `pooled` is one vector for a whole prompt, in the families that have such.
    """

    features: Float[Tensor, "b token d"]
    lengths: tuple[int, ...]
    pooled: Float[Tensor, "b pooled"] | None = None

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Question:
    """One Yes/No question about an edit.

    `prompt` is the text put to the judge, with `{reference}` and `{edited}` where the images go (a question about the
    edited image alone has no `{reference}`). `wants_yes` is the right answer for a good edit. `kind` is `edit` or
    `identity`.
    """

    kind: str
    prompt: str
    wants_yes: bool
