"""Edits to evaluate on: from the held-out split, with their answers, the same ones for everybody who names the seed."""

import random
from collections.abc import Sequence

from nopair.errors import ConfigError
from nopair.world.edits import ALL_CATEGORIES, CATEGORIES, Edit, sample_edit


def chosen(categories: Sequence[str]) -> tuple[str, ...]:
    """Categories that a person named, each once.

    Raises:
        ConfigError: there is none of that name.
    """
    for category in categories:
        if category not in ALL_CATEGORIES:
            raise ConfigError(f"there is no category {category!r}; choose of: {', '.join(ALL_CATEGORIES)}")
    return tuple(dict.fromkeys(categories))


def held_out_cases(seed: int, per_category: int, categories: Sequence[str] = CATEGORIES) -> tuple[Edit, ...]:
    """`per_category` held-out edits of each category, categories taking turns so that every prefix is balanced.

    Case k of a category depends on the seed, the category and k only: a longer list begins with the shorter one.
    """
    return tuple(
        sample_edit(random.Random(f"cases {seed} {category} {k}"), category, held_out=True)
        for k in range(per_category)
        for category in categories
    )
