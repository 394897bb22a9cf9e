"""What a shapes-world scene is: a two-tone patterned background and one to three shapes.

Everything is discrete, so the set of renderable scenes is finite and an image can be explained exactly
by searching it (see `oracle`). The *nuisances* (jitter of an object, phase of a pattern) never appear in
a caption: an editor can only get them right by looking at the reference image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

SIZE: Final = 64
"""Side of a scene in pixels."""
CELL: Final = 32
"""Side of one of the four cells an object may stand in."""
OFFSETS: Final = (-2, 0, 2)
"""Where an object's centre may lie from its cell's centre, along each axis, in pixels."""
PERIOD: Final = 8
"""Period of every background pattern in pixels."""
PHASES: Final = (0, 2, 4, 6)
"""Shifts of a background pattern along each axis, in pixels."""

SHAPES: Final = ("circle", "square", "triangle", "cross")
OBJECT_COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "white")
TEXTURES: Final = ("plain", "striped", "dotted")
SIZES: Final = ("small", "large")
CELLS: Final = ("top left", "top right", "bottom left", "bottom right")
PATTERNS: Final = ("stripes", "bars", "checks", "dots", "diagonals")
BACKGROUND_COLOURS: Final = ("grey", "brown", "teal", "pink")

# One colour of every shape and one colour of nearly every pattern never occur in the editor's training
# scenes; a held-out scene contains at least one of them.
HELD_OUT_OBJECTS: Final = frozenset(
    {("red", "triangle"), ("blue", "circle"), ("yellow", "cross"), ("purple", "square")}
)
HELD_OUT_BACKGROUNDS: Final = frozenset({("teal", "stripes"), ("pink", "bars"), ("grey", "checks"), ("brown", "dots")})


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. `cell` indexes `CELLS`; `dx`, `dy` are OFFSETS in pixels, right and down."""

    shape: str
    colour: str
    texture: str
    size: str
    cell: int
    dx: int = 0
    dy: int = 0

    @property
    def noun(self) -> str:
        """How instructions and questions refer to it: colour and shape, unique within a scene."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Background:
    """A two-tone pattern. `phase_x`, `phase_y` are PHASES, in pixels."""

    pattern: str
    colour: str
    phase_x: int = 0
    phase_y: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and its things, ordered by cell; at most one thing per cell and per shape."""

    background: Background
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        cells = [thing.cell for thing in self.things]
        assert cells == sorted(set(cells)), f"things must stand in distinct cells, in order: {cells}"

    def at(self, cell: int) -> Thing | None:
        """The thing standing in `cell`, if any."""
        return next((thing for thing in self.things if thing.cell == cell), None)

    def without(self, cell: int) -> "Scene":
        """The same scene with `cell` empty."""
        return replace(self, things=tuple(thing for thing in self.things if thing.cell != cell))

    def with_thing(self, thing: Thing) -> "Scene":
        """The same scene with `thing` in its cell, in place of what stood there."""
        things = [*self.without(thing.cell).things, thing]
        return replace(self, things=tuple(sorted(things, key=lambda other: other.cell)))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene contains a combination of attributes reserved for evaluation."""
    return (scene.background.colour, scene.background.pattern) in HELD_OUT_BACKGROUNDS or any(
        (thing.colour, thing.shape) in HELD_OUT_OBJECTS for thing in scene.things
    )


def opposite(cell: int) -> int:
    """The cell across the centre."""
    return len(CELLS) - 1 - cell


def describe_thing(thing: Thing) -> str:
    """`small striped red circle`; a plain texture is not mentioned."""
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"{thing.size} {texture}{thing.noun}"


def describe_background(background: Background) -> str:
    """`teal checks`."""
    return f"{background.colour} {background.pattern}"


def caption(scene: Scene) -> str:
    """A complete caption but for the nuisances: `small red circle top left, large blue cross bottom right, on teal
    checks`."""
    things = "".join(f"{describe_thing(thing)} {CELLS[thing.cell]}, " for thing in scene.things)
    return f"{things}on {describe_background(scene.background)}"


def caption_without_places(scene: Scene) -> str:
    """What is there, and not where: `small red circle, large blue cross, on teal checks`."""
    things = "".join(f"{describe_thing(thing)}, " for thing in scene.things)
    return f"{things}on {describe_background(scene.background)}"


CAPTIONS: Final[Mapping[str, Callable[[Scene], str]]] = {"complete": caption, "placeless": caption_without_places}
"""How scenes may be told to an editor in training, by the name a recipe has for it."""
