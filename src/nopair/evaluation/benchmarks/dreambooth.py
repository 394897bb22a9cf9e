"""The DreamBooth set (google/dreambooth): 30 subjects, each to be shown in 25 new scenes.

`prompts_and_classes.txt` names the class of each subject and two lists of prompts, for objects and for living subjects;
a folder per subject holds its photos. Editors get the first photo; scorers compare with all of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nopair.data.files import IMAGE_FORMATS, is_folder
from nopair.errors import DataError
from nopair.evaluation.benchmarks.base import Benchmark, Item, LeftOut, collect, read_text

NAME: Final = "dreambooth"
FILE: Final = "prompts_and_classes.txt"
LIVE: Final = frozenset({"cat", "dog"})
"""Classes that get the prompts for living subjects."""
_PROMPT: Final = re.compile(r"""^\s*(['"])(.+)\1\.format\(""")
_CLASS: Final = re.compile(r"^\s*([\w-]+)\s*,\s*([\w -]*\w)\s*$")


def read(folder: Path) -> Benchmark:
    """The benchmark from a copy of the published `dataset` folder.

    Raises:
        DataError: the list of prompts is missing or of another form, or there is no usable item.
    """
    path = folder / FILE
    text = read_text(path, "name the folder `dataset` of a copy of github.com/google/dreambooth")
    head, *lists = re.split(r"(?im)^\s*(?:object|live subject) prompts\s*$", text)
    classes = {match[1]: match[2] for line in head.splitlines() if (match := _CLASS.match(line))}
    classes.pop("subject_name", None)  # the table's own head
    prompts = [[match[2] for line in part.splitlines() if (match := _PROMPT.match(line))] for part in lists]
    if not classes or len(prompts) != 2 or not all(prompts):
        raise DataError(f"{path}: expected a table of classes and two lists of prompts; copy the published file again")
    return collect(NAME, str(folder), _items(folder, classes, objects=prompts[0], live=prompts[1]))


def _items(folder: Path, classes: dict[str, str], objects: list[str], live: list[str]) -> Iterator[Item | LeftOut]:
    for subject, kind in classes.items():
        photos = tuple(sorted(_photos(folder / subject)))
        if not photos:
            yield LeftOut(f"subject {subject}", f"there is no photo in {folder / subject}")
            continue
        for number, prompt in enumerate(live if kind in LIVE else objects):
            caption = " ".join(prompt.replace("{0}", "").replace("{1}", kind).split())
            yield Item(
                place=f"{subject}/{number:02}",
                key=f"{subject}-{number:02}",
                category=subject,
                language="",
                instruction=f"Make a new picture of this very {kind}: {caption}",
                source=photos[0],
                caption=caption,
                subject_images=photos,
            )


def _photos(folder: Path) -> Iterator[Path]:
    if is_folder(folder):
        yield from (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_FORMATS and path.name[0] != ".")
