"""`nopair data inspect`: looks at a dataset, prints tables, and writes a page to browse."""

import base64
import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nopair.data.files import write_atomic
from nopair.data.images import decode_image, to_pillow
from nopair.errors import ImageError
from nopair.synthesis.inspection import Inspection, inspect
from nopair.synthesis.leaks import read_benchmark

PAGE: Final = "inspection.html"
_THUMBNAIL: Final = 320


def run_inspection(dataset: Path, benchmarks: Sequence[Path], page: Path | None, samples: int, seed: int) -> None:
    """Inspect, print, and write the page, by default `PAGE` in the dataset's folder.

    Raises:
        DataError: the dataset or a benchmark cannot be read.
        OutputError: the page cannot be written.
    """
    known = [read_benchmark(folder) for folder in benchmarks]
    found = inspect(dataset, known, samples, seed)
    place = dataset / PAGE if page is None else page
    write_atomic(place, render(dataset.resolve().name, found, [one.told for one in known]).encode("utf-8"))
    console = Console()
    for table in tables(found):
        console.print(table)
    for (benchmark, what), count in found.leaked.items():
        _say(console, f"mind: {count} records have a {what} of {benchmark}")
    for one in known:
        _say(console, one.told)
    if known and not found.leaked:
        _say(console, "nothing of what was read is in it")
    _say(console, f"{found.photos} photos, {found.near_photos} nearly as another, {found.unreadable} unreadable")
    _say(console, f"{found.twice} records ask the same of the same photo as another")
    _say(console, f"to browse: {place}")


def tables(found: Inspection) -> list[Table]:
    """Instructions by category; what was set aside; what is missing."""
    kinds = Table("category", "records", "shortest", "median words", "longest", "distinct", "distinct pairs")
    for name, kind in found.kinds.items():
        numbers = [str(n) for n in (kind.records, kind.shortest, kind.median, kind.longest)]
        kinds.add_row(Text(name), *numbers, f"{kind.distinct:.2f}", f"{kind.pairs:.2f}")
    drawn = [kinds]
    for title, rows in (("set aside", found.rejected), ("missing", found.missing)):
        if rows:
            table = Table(title, "records")
            for name, count in rows.items():
                table.add_row(Text(name), str(count))
            drawn.append(table)
    return drawn


def render(name: str, found: Inspection, benchmarks: Sequence[str]) -> str:
    """The page's text: no scripts, nothing fetched, all that a record says escaped. `benchmarks`: what was read."""
    source = importlib.resources.files("nopair.synthesis") / "templates" / "inspection.html.j2"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    samples = [(_thumbnail(sample.content), sample.record) for sample in found.samples]
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(name=name, found=found, benchmarks=benchmarks, samples=samples)


def _thumbnail(content: bytes) -> str:
    """A small JPEG as a data address; empty if the photo is broken, which is counted elsewhere."""
    try:
        small = to_pillow(decode_image(content, "the photo"))
    except ImageError:
        return "data:,"
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
