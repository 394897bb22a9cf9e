"""What a study is: values only."""

from dataclasses import dataclass
from typing import Final

from nopair.world.edits import CATEGORIES

RECIPE: Final = "study"
"""The shipped recipe that every variant changes."""
NATIVE: Final = ()
"""Sampled at the steps that the recipe trains for, and no others."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train an editor.

    Attributes:
        name: of the configuration, and of its folder.
        overrides: of the recipe, `dotted.key=value`.
        sampled: numbers of sampling steps to score it at; empty for the recipe's own alone.
    """

    name: str
    overrides: tuple[str, ...] = ()
    sampled: tuple[int, ...] = NATIVE


@dataclass(frozen=True, slots=True)
class Study:
    """A question with the variants that answer it.

    Attributes:
        name: as the command takes it.
        question: in one sentence.
        claim: what the paper says, or that it says nothing.
        variants: the first is what the others are held against.
        overrides: of all variants, before their own.
        categories: of edit that the editors are scored on.
        edit_factor: held-out edits of each kind, as a multiple of the scale's; more where the kinds are few.
        scorer: judge that scores all editors beside the oracle; None for the one that each was trained under.
        audited: whether the judges that they were trained under are audited, too.
    """

    name: str
    question: str
    claim: str
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...] = ()
    categories: tuple[str, ...] = CATEGORIES
    edit_factor: int = 1
    scorer: str | None = None
    audited: bool = False

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"{self.name}: expected variants of different names, not {names}")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done.

    Attributes:
        seeds: of training; scenes, noises and order of data all follow.
        per_category: held-out edits of each kind that an editor is scored on, the same ones for all; a study may ask
            for more.
        most_steps: that any phase may take; None for all that the recipe says.
    """

    seeds: tuple[int, ...]
    per_category: int
    most_steps: int | None = None


FULL: Final = Scale(seeds=(0, 1, 2), per_category=16)
QUICK: Final = Scale(seeds=(0,), per_category=1, most_steps=3)
"""Every part of a study, with nothing learnt: to see what it does and what it writes."""
