import random

import pytest
import torch
from torch import Tensor

from nopair.world.corruptions import blur
from nopair.world.edits import CATEGORIES, FREE_FORM, random_scene
from nopair.world.parse import canonical
from nopair.world.proof import error_rates, parse_errors
from nopair.world.scenes import Background, Scene, Thing


@pytest.mark.parametrize("categories", [CATEGORIES, (FREE_FORM,)])
def test_the_oracle_does_not_err_on_rendered_and_slightly_noisy_images(categories: tuple[str, ...]) -> None:
    rates = error_rates(None, 0, 90, categories)
    assert list(rates) == ["rendered", "noisy"]
    for row in rates.values():
        preservation, realism = row.pop("preservation"), row.pop("realism")
        assert min(preservation, realism) > 0.97
        assert row == dict.fromkeys(row, 0.0)


def test_a_bad_reconstruction_is_found_out() -> None:
    def smear(images: Tensor) -> Tensor:
        return blur(images, 4.0)

    rates = error_rates(smear, seed=0, count=18)
    assert rates["reconstructed"]["missed"] == 1.0
    assert rates["reconstructed"]["realism"] < 0.2
    assert rates["rendered"] == error_rates(torch.clone, seed=0, count=18)["reconstructed"]


def test_parse_errors_count_what_is_wrong() -> None:
    circle = Thing("circle", "red", "plain", "large", 0)
    truth = [Scene(Background("dots", "grey"), (circle,))] * 2
    found = [
        truth[0],
        Scene(
            Background("bars", "grey"),
            (Thing("circle", "red", "dotted", "large", 0, 2), Thing("cross", "red", "plain", "large", 3)),
        ),
    ]
    errors = parse_errors(truth, found)
    wrong = {"scene": 0.5, "presence": 1 / 8, "texture": 0.5, "dx": 0.5, "background_pattern": 0.5}
    assert {name: error for name, error in errors.items() if error} == pytest.approx(wrong)


def test_phases_that_look_the_same_are_no_error() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in range(20)]
    assert not any(parse_errors(scenes, [canonical(scene) for scene in scenes]).values())
