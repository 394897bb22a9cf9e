"""A look at a recipe's teacher before it is trained under."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor

from nopair.config import Recipe, load_recipe
from nopair.data.broken import BROKEN
from nopair.evaluation import preview as module
from nopair.evaluation.grid import GAP, HEADER, TILE
from nopair.evaluation.preview import COLUMNS, Look, draw_looks, look, preview
from nopair.method.flow import guided
from nopair.training.phase import generator
from nopair.training.run import compose_teacher


def recipe_of(*overrides: str, output: Path = Path("unused")) -> Recipe:
    return load_recipe("demo", ["threads=1", f"output={output}", *overrides])


@pytest.mark.parametrize(("scale", "negative"), [(1.0, None), (2.5, None), (3.0, "")])
def test_the_teacher_draws_the_edited_caption_from_noise_with_the_guidance_of_training(
    scale: float, negative: str | None
) -> None:
    words = "null" if negative is None else f'"{negative}"'
    recipe = recipe_of(f"npedit.guidance={{default: {scale}}}", f"npedit.negative_prompt={words}")
    teacher, records = compose_teacher(recipe, "cpu", 2)
    record, steps = records[1], 3
    found = look(teacher, recipe, record, 1, steps)
    source = generator(recipe.seed, "preview", "sample", 1)
    shape = teacher.encode_image(record.reference).shape[1:]
    with torch.no_grad():
        caption = teacher.encode_text(record.edited_captions)
        away = teacher.encode_text(record.captions if negative is None else (negative,))
        x: Float[Tensor, "1 c h w"] = torch.randn(shape, generator=source)[None]
        for k in range(steps, 0, -1):
            t = torch.tensor([k / steps])
            v = guided(teacher.velocity(x, t, caption), teacher.velocity(x, t, away), torch.tensor([scale]))
            x = x - v / steps
        expected = teacher.decode_latents(x)[0].clamp(0, 1)
    torch.testing.assert_close(found.drawn, expected, atol=1e-4, rtol=1e-4)
    assert found.edited_caption == record.edited_captions[0]
    assert torch.equal(found.reference, record.reference[0])


def test_its_estimate_keeps_the_reference_where_both_captions_say_the_same() -> None:
    recipe = recipe_of()
    teacher, (record,) = compose_teacher(recipe, "cpu", 1)
    same = replace(record, edited_captions=record.captions)
    found = look(teacher, recipe, same, 0, 1)
    with torch.no_grad():
        through = teacher.decode_latents(teacher.encode_image(record.reference))[0].clamp(0, 1)
    torch.testing.assert_close(found.estimate, through, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(look(teacher, recipe, record, 0, 1).estimate, through, atol=0.1)


def test_the_picture_has_a_row_for_each_photo_and_the_run_is_left_alone(tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "é.png"
    Image.new("RGB", (70, 50), "red").save(tmp_path / "photo.png")
    words = {"instruction": "add a hat", "caption": "a cat", "edited_caption": "a cat with a hat", "category": "add"}
    line = json.dumps({"image": "photo.png"} | words)
    (tmp_path / "photos.jsonl").write_text(f"{line}\n{line}\n")
    data = f'{{source: photos, path: "{tmp_path / "photos.jsonl"}", height: 64, width: 64}}'
    run.mkdir()
    (run / BROKEN).write_text("what an earlier run has counted")
    preview(recipe_of(f"data={data}", output=run), picture, 3, 1, "cpu", Console(quiet=True))
    with Image.open(picture) as image:
        assert image.size == (GAP + len(COLUMNS) * (TILE + GAP), HEADER + 3 * (TILE + GAP))
    assert [file.read_text() for file in run.iterdir()] == ["what an earlier run has counted"]


def test_all_images_and_words_of_a_look_are_in_the_picture() -> None:
    grey, dark = torch.full((3, 64, 64), 0.5), torch.zeros(3, 64, 64)
    one = Look("add a hat", "a dog with a hat", grey, grey, grey)
    others = [
        replace(one, instruction="remove it"),
        replace(one, edited_caption="a dog"),
        replace(one, reference=dark),
        replace(one, drawn=dark),
        replace(one, estimate=dark),
    ]
    plain = draw_looks([one])
    assert all(not torch.equal(draw_looks([other]), plain) for other in others)


def test_words_that_the_picture_cannot_show_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = torch.zeros(3, 8, 8)
    texts = ("make it larger", "a cat"), ("mach die Tür größer", "猫")
    looks = iter([Look(*each, blank, blank, blank) for each in texts])
    monkeypatch.setattr(module, "look", lambda *_: next(looks))
    told = io.StringIO()
    preview(recipe_of(output=tmp_path), tmp_path / "a.png", 2, 1, "cpu", Console(file=told, width=40))
    assert told.getvalue().splitlines()[1:] == ["row 2: mach die Tür größer | 猫"]
