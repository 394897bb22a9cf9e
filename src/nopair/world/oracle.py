"""Scores an edited image by explaining it as a scene (`parse`) and comparing scenes and pixels. No learned model.

All scores lie in [0, 1]. Outputs are clamped to [0, 1] first. Words used below:

    parsed scene    the nearest renderable scene to the output, in canonical form
    edited cells    `edit.cell`, and for `move` also the cell the thing came from
    region          of a thing: where its mask is not 0, grown by one pixel
    pixel credit    of a pixel, from e = max over RGB of |output - wanted|: 1 up to a full limit, 0 from a none limit
                    on, linear between; of a region, its mean
    rms             root mean square over pixels and RGB

Where the constants come from (540 edits; an autoencoder of 35 dB stands for a decent editor's decoder):
    background credit  Patterns swing by 0.32 or more in their strongest channel, so the flat mean of a pattern is off
                       by 0.16 or more everywhere and must earn nothing: 0.15. The autoencoder is off by 0.02 at 80 %
                       of the pixels and by 0.04 at 90 %: 0.06. It earns 0.999, noise of 0.1 about 0.4, a blur of two
                       pixels 0.2, a flat mean 0.03.
    thing credit       Textures swing by 0.41 or more and edges soften in a decoder, so the limits are wider: 0.10 and
                       0.30. What they let pass in shape, colour, texture, size and position, the parse must still
                       find right. The autoencoder earns 0.94, a blur of one pixel 0.81.
    realism            The autoencoder lies within 0.045 of the nearest render (0.024 at the median); noise of 0.1 at
                       0.1, a blur of two pixels at 0.11 to 0.18: full 0.03, none 0.15.
    fit                Of the autoencoder's edits 99.8 % pass, of images blurred by four pixels or more none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.world.edits import ALL_CATEGORIES, FREE_FORM, Edit
from nopair.world.parse import canonical, parse
from nopair.world.render import cell_slices, masks, render, thing_layers
from nopair.world.scenes import CELLS, SHAPES, SIZE, SIZES, Scene, Thing

BACKGROUND_CREDIT: Final = (0.06, 0.15)
"""Pixel error up to which a background pixel earns 1, and from which it earns 0."""
THING_CREDIT: Final = (0.10, 0.30)
"""The same for the pixels of a thing to be kept."""
REALISM_FULL: Final = 0.03
REALISM_NONE: Final = 0.15
FIT_LIMIT: Final = 0.14
"""Largest rms distance between output and render of its parse, where the edit shows, for a success."""
EXPLAINED: Final = 0.6
"""Least share of the variance of the parse's render, where the edit shows, that the output must reproduce for a
success: 1 - rms distance² / variance. A flat patch reproduces none, whatever it parses as."""
NOTHING_CREDIT: Final = 0.8
"""Least pixel credit of the whole image for `nothing` to count as done."""

ASKED: Final = {
    "recolour": ("shape", "colour"),
    "add": ("shape", "colour", "texture", "size"),
    "replace": ("shape", "colour"),
    "resize": ("shape", "size"),
    "move": ("shape", "colour"),
    "texture": ("shape", "texture"),
}
"""What must be right at `edit.cell` for the edit to be done; the shape shows that the thing is still there."""
KEPT: Final = {
    "recolour": ("shape", "texture", "size", "dx", "dy"),
    "replace": ("texture", "size", "dx", "dy"),
    "resize": ("shape", "colour", "texture", "dx", "dy"),
    "move": ("shape", "colour", "texture", "size"),
    "texture": ("shape", "colour", "size", "dx", "dy"),
}
"""Attributes of the edited thing that must not change; an added or removed thing has none, and a move may change the
jitter."""
DESCRIBED: Final = ("shape", "colour", "texture", "size")
IDENTITY: Final = ("colour", "texture", "size")
"""What only the reference tells of the subject of a `free-form` edit; the instruction names its shape."""

Region = Bool[Tensor, "height width"]


@dataclass(frozen=True, slots=True)
class Score:
    """How good one edited image is; every field in [0, 1], see `score`."""

    success: float
    preservation: float
    realism: float
    overall: float


def share_right(found: Thing | None, wanted: Thing | None, attributes: Sequence[str]) -> float:
    """Share of the attributes on which two things agree; 0 if either is missing."""
    if found is None or wanted is None:
        return 0.0
    return sum(getattr(found, name) == getattr(wanted, name) for name in attributes) / len(attributes)


def edited_things(edit: Edit) -> tuple[Thing | None, Thing | None]:
    """The thing the edit is about, before (None for `add`) and after (None for `remove`)."""
    if edit.cell is None:
        return None, None
    before = edit.source.at(edit.cell)
    if edit.category == "move":
        before = next(thing for thing in edit.source.things if edit.target.at(thing.cell) is None)
    return before, edit.target.at(edit.cell)


def edited_cells(edit: Edit) -> frozenset[int]:
    """Cells where the asked change shows."""
    return frozenset(thing.cell for thing in edited_things(edit) if thing is not None)


def achieved(edit: Edit, scene: Scene) -> bool:
    """Whether the asked attributes are right in `scene`, whatever else changed; nuisances left open are free.

    recolour: the thing in its cell has the new colour and its old shape. remove: the cell is empty. add: a thing of
    the asked shape, colour, texture and size stands in the cell. replace: a thing of the new shape and colour.
    resize, texture: the new size or texture and the old shape. move: a thing of that shape and colour at the
    destination and nothing in the old cell. background: new pattern and colour. nothing: the very scene. free-form: the
    asked background, a thing of the subject's shape, the other thing as asked, and nothing else, wherever they stand.
    """
    if edit.category == FREE_FORM:
        return _is_new_scene(edit, scene)
    before, after = edited_things(edit)
    if edit.category == "nothing":
        return canonical(scene) == canonical(edit.source)
    if edit.category == "background":
        found, wanted = scene.background, edit.target.background
        return (found.pattern, found.colour) == (wanted.pattern, wanted.colour)
    assert edit.cell is not None, f"an edit of category {edit.category} names a cell"
    if edit.category == "remove":
        return scene.at(edit.cell) is None
    if edit.category == "move" and before is not None and scene.at(before.cell) is not None:
        return False
    return share_right(scene.at(edit.cell), after, ASKED[edit.category]) == 1.0


def _is_new_scene(edit: Edit, scene: Scene) -> bool:
    found, wanted = scene.background, edit.target.background
    subjects = [thing for thing in scene.things if thing.shape == edit.subject]
    others = [thing for thing in scene.things if thing.shape != edit.subject]
    if (found.pattern, found.colour) != (wanted.pattern, wanted.colour) or len(subjects) != 1 or len(others) != 1:
        return False
    (asked,) = (thing for thing in edit.target.things if thing.shape != edit.subject)
    return share_right(others[0], asked, DESCRIBED) == 1.0


def subject_identity(edit: Edit, scene: Scene) -> float:
    """Of a `free-form` edit: share of what the reference tells of its subject (`IDENTITY`) that is right in a scene.

    Wherever the subject stands. 0 if nothing of its shape is there; of several, the one that is most like it counts.
    """
    (subject,) = (thing for thing in edit.source.things if thing.shape == edit.subject)
    alike = [thing for thing in scene.things if thing.shape == edit.subject]
    return max((share_right(thing, subject, IDENTITY) for thing in alike), default=0.0)


def _place(mask: Float[Tensor, "cell cell"], cell: int, *, grow: int) -> Region:
    """Where a mask within a cell is not 0, on the whole image, grown by `grow` pixels."""
    canvas = torch.zeros(1, 1, SIZE, SIZE)
    rows, columns = cell_slices(cell)
    canvas[0, 0, rows, columns] = (mask > 0).float()
    return torch.nn.functional.max_pool2d(canvas, 2 * grow + 1, stride=1, padding=grow)[0, 0] > 0


def _region(things: Sequence[Thing | None], *, grow: int = 1) -> Region:
    covered = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for thing in things:
        if thing is not None:
            covered |= _place(thing_layers(thing)[0], thing.cell, grow=grow)
    return covered


def _inside(thing: Thing) -> Region:
    """Pixels that a thing covers entirely."""
    rows, columns = cell_slices(thing.cell)
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[rows, columns] = thing_layers(thing)[0] >= 1.0
    return region


def _wherever(thing: Thing) -> Region:
    """Pixels covered for some jitter."""
    mask = masks()[SHAPES.index(thing.shape), SIZES.index(thing.size)].amax(0)
    return _place(mask, thing.cell, grow=1)


def pixel_credit(
    output: Float[Tensor, "3 height width"], wanted: Float[Tensor, "3 height width"], limits: tuple[float, float]
) -> Float[Tensor, "height width"]:
    """1 where the largest channel difference is at most the first limit, 0 from the second on, linear between."""
    full, none = limits
    error = (output - wanted).abs().amax(0)
    return ((none - error) / (none - full)).clamp(0, 1)


def _distance(a: Float[Tensor, "3 height width"], b: Float[Tensor, "3 height width"], region: Region) -> float:
    """rms difference over a region."""
    return float((a - b).square().mean(0)[region].mean().sqrt())


def _fits(output: Tensor, explained: Tensor, region: Region) -> bool:
    """Whether an explanation is near enough and explains enough to be believed over a region."""
    distance = _distance(output, explained, region)
    spread = explained[:, region].std(dim=1, correction=0).square().mean()
    return distance <= FIT_LIMIT and distance**2 <= (1 - EXPLAINED) * float(spread)


def _success(edit: Edit, output: Tensor, parsed: Scene, explained: Tensor) -> float:
    if not achieved(edit, parsed):
        return 0.0
    if edit.category == "nothing":
        return float(pixel_credit(output, render(edit.source), BACKGROUND_CREDIT).mean() >= NOTHING_CREDIT)
    if edit.category == FREE_FORM:
        regions = [~_region(parsed.things), *(_region([thing]) for thing in parsed.things)]
        return float(all(_fits(output, explained, region) for region in regions))
    if edit.category == "background":
        shows = ~_region(parsed.things)
    else:
        before, _ = edited_things(edit)
        shows = _region([before, *(parsed.at(cell) for cell in edited_cells(edit))])
    return float(_fits(output, explained, shows))


def _background_credit(edit: Edit, output: Tensor, parsed: Scene) -> float:
    """Credit over the pixels that are background before and after; 0 if the parse finds another background.

    Pixels that a thing may rightly cover depending on an open jitter, or that the thing found there does cover, do
    not count.
    """
    if parsed.background != canonical(edit.source).background:
        return 0.0
    covered = _region([*edit.source.things, *edit.target.things])
    _, after = edited_things(edit)
    if edit.category in ("add", "move") and after is not None:
        covered |= _wherever(after) | _region([parsed.at(after.cell)])
    wanted = render(Scene(edit.source.background, ()))
    return float(pixel_credit(output, wanted, BACKGROUND_CREDIT)[~covered].mean())


def _thing_credit(edit: Edit, thing: Thing, output: Tensor, parsed: Scene) -> float:
    """Credit over the region of a thing to be kept, halved if the parse finds the jitter wrong along one axis.

    0 if the jitter is wrong along both, or if the parse finds a thing of another description, or none, in its place.
    Under a new background only the pixels the thing covers entirely count, as the new pattern's phase is open.
    """
    found = parsed.at(thing.cell)
    if share_right(found, thing, DESCRIBED) < 1.0:
        return 0.0
    region = _inside(thing) if edit.category == "background" else _region([thing])
    credit = float(pixel_credit(output, render(edit.target), THING_CREDIT)[region].mean())
    return credit * share_right(found, thing, ("dx", "dy"))


def _subject_credit(edit: Edit, output: Tensor, parsed: Scene) -> float:
    """`subject_identity` of the subject as found, times the pixel credit where it covers its place entirely."""
    credit = pixel_credit(output, render(parsed), THING_CREDIT)
    found = [Scene(parsed.background, (thing,)) for thing in parsed.things if thing.shape == edit.subject]
    own = [subject_identity(edit, scene) * float(credit[_inside(scene.things[0])].mean()) for scene in found]
    return max(own, default=0.0)


def _preservation(edit: Edit, output: Tensor, parsed: Scene) -> float:
    if edit.category == FREE_FORM:
        return _subject_credit(edit, output, parsed)
    cells = edited_cells(edit)
    if any(parsed.at(cell) and not edit.source.at(cell) for cell in range(len(CELLS)) if cell not in cells):
        return 0.0
    credits = [_thing_credit(edit, thing, output, parsed) for thing in edit.source.things if thing.cell not in cells]
    if edit.category != "background":
        credits.append(_background_credit(edit, output, parsed))
    if edit.category in KEPT:
        before, after = edited_things(edit)
        assert before is not None
        assert after is not None
        found = parsed.at(after.cell) or parsed.at(before.cell)
        credits.append(share_right(found, before, KEPT[edit.category]))
    return math.prod(credits) ** (1 / len(credits)) if credits else 1.0


def _score(edit: Edit, output: Float[Tensor, "3 height width"], parsed: Scene) -> Score:
    explained = render(parsed)
    success = _success(edit, output, parsed, explained)
    preservation = _preservation(edit, output, parsed)
    distance = _distance(output, explained, torch.ones(SIZE, SIZE, dtype=torch.bool))
    realism = min(1.0, max(0.0, (REALISM_NONE - distance) / (REALISM_NONE - REALISM_FULL)))
    return Score(success, preservation, realism, math.sqrt(min(success, preservation) * realism))


def score_batch(edits: Sequence[Edit], outputs: Float[Tensor, "batch 3 height width"]) -> list[Score]:
    """`score` for each edit and its output, parsed together.

    Raises:
        ValueError: not one edit per output, another size than the world's, or a value that is not finite.
    """
    if len(edits) != len(outputs):
        raise ValueError(f"{len(edits)} edits but {len(outputs)} outputs")
    parsed = parse(outputs)
    clean = outputs.detach().float().cpu().clamp(0, 1)
    return [_score(edit, output, scene) for edit, output, scene in zip(edits, clean, parsed, strict=True)]


def score(edit: Edit, output: Float[Tensor, "3 height width"]) -> Score:
    """Score one output (RGB in [0, 1]; values outside are clamped) of an edit.

    success
        1 if the parsed scene has what was asked (`achieved`) and, where the edit shows, its render is within
        `FIT_LIMIT` rms of the output and the output reproduces `EXPLAINED` of its variance; else 0. The edit shows in
        the regions of the edited thing before and as found, or, for `background`, wherever no thing is found.
        For `nothing`: the parsed scene is the source and the pixel credit of the whole image, by the background's
        limits, is at least `NOTHING_CREDIT`. For `free-form` the background and each of the two things must fit.
    preservation
        Geometric mean of one credit for each thing that is to be kept. *Background* (except for `background` edits):
        pixel credit where neither source nor target has a thing, and 0 if the parsed background differs in pattern,
        colour or phase. *Each thing in another cell*: pixel credit over its region, times the share (of two) of the
        jitter's coordinates that is right, and 0 if the thing found there differs in shape, colour, texture or size.
        *The edited thing*, if it stays (`KEPT`): share of its kept attributes (jitter right and down count as one
        each) that the parse finds right. All of it is 0 if the parse finds a thing in a cell that should have stayed
        empty. An edit that was not done can be well preserved: the unchanged image has preservation 1. For `free-form`,
        where nothing else is to stay, it is the *subject's identity*: the share of colour, texture and size that is as
        in the reference, times the pixel credit over the subject against its own render; 0 if nothing of its shape is
        there.
    realism
        From the rms distance to the render of the parsed scene: 1 up to `REALISM_FULL`, 0 from `REALISM_NONE` on.
    overall
        sqrt(min(success, preservation) · realism), the combination of VIEScore (Ku et al., 2024).

    Jitter of an added or moved thing, phase of a new background and all places of `free-form` are open: no score
    depends on them.

    Raises:
        ValueError: another size than the world's, or a value that is not finite.
    """
    return score_batch([edit], output[None])[0]


class Means(TypedDict):
    """Mean scores, each in [0, 1]."""

    success: float
    preservation: float
    realism: float
    overall: float


class CategoryMeans(Means):
    """Mean scores of one category, and of how many edits."""

    count: int


class Summary(Means):
    """Macro averages: the means over categories, each category counting the same; and the means of each."""

    categories: dict[str, CategoryMeans]


def _means(rows: Sequence[Score]) -> Means:
    return Means(
        success=sum(row.success for row in rows) / len(rows),
        preservation=sum(row.preservation for row in rows) / len(rows),
        realism=sum(row.realism for row in rows) / len(rows),
        overall=sum(row.overall for row in rows) / len(rows),
    )


def summarise(edits: Sequence[Edit], scores: Sequence[Score]) -> Summary:
    """Means per category that occurs, and their means over categories, so that a frequent category weighs no more.

    Raises:
        ValueError: there is no score, or not one per edit.
    """
    if not scores or len(edits) != len(scores):
        raise ValueError(f"{len(edits)} edits and {len(scores)} scores: need one score per edit, and at least one")
    categories: dict[str, CategoryMeans] = {}
    for category in ALL_CATEGORIES:
        own = [each for edit, each in zip(edits, scores, strict=True) if edit.category == category]
        if own:
            categories[category] = CategoryMeans(**_means(own), count=len(own))
    macro = _means([Score(m["success"], m["preservation"], m["realism"], m["overall"]) for m in categories.values()])
    return Summary(**macro, categories=categories)
