"""Outputs that were made elsewhere, such as those that makers of editors publish."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from nopair.data.files import IMAGE_FORMATS, is_folder
from nopair.endpoints.server import Server
from nopair.errors import DataError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Told, below
from nopair.evaluation.specs import Spec


@final
@dataclass(frozen=True, slots=True)
class MadeOutputs:
    """A `Contestant`: a folder in the benchmark's layout. Nothing is made, and nothing is written."""

    makes: ClassVar[bool] = False
    name: str
    about: Mapping[str, JsonValue]
    root: Path

    @classmethod
    def load(cls, spec: Spec) -> "MadeOutputs":
        """`outputs:FOLDER[,name=NAME][,judge=NAME]`; `judge` tells under which one their editor was trained.

        Raises:
            ConfigError: an unknown option.
            DataError: there is no such folder.
        """
        spec.only("name", "judge")
        root = Path(spec.place)
        if not is_folder(root):
            raise DataError(f"{root}: no such folder of outputs; check the path")
        about: dict[str, JsonValue] = {"kind": "outputs", "folder": spec.place}
        return cls(spec.options.get("name", root.resolve().name), about, root)

    @property
    def server(self) -> Server | None:
        """None is asked."""
        return None

    def output(self, item: Item, folder: Path) -> Path:
        """The file with whichever suffix it has; where there is none, the one that should be there."""
        wanted = below(item, self.root)
        found = (wanted.with_name(wanted.stem + suffix) for suffix in IMAGE_FORMATS)
        return next((path for path in found if path.is_file()), wanted)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """Only says what is not there."""
        for item in items:
            told(item, f"{below(item, self.root)}: no such output")
