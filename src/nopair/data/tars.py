"""WebDataset: tar files in which `key.jpg` (or .png, .webp) and `key.json` make a record.

`key.json` is {"instruction", "caption", "edited_caption", "category", "subject"?}. There is no key for an edited image,
and an unknown key is an error; so is a second photo of one record. Opening reads every member's header and every
`key.json`, and holds both in memory.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nopair.data.files import IMAGE_FORMATS, read_part
from nopair.data.lines import parse_ask
from nopair.data.tables import Ask, Shapes, measured, state_of
from nopair.errors import DataError


@dataclass(frozen=True, slots=True)
class _Member:
    """A photo in a tar file, not compressed: so many bytes from there."""

    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarTable:
    """A `nopair.data.tables.Table` of the records in tar files."""

    asks: tuple[Ask, ...]
    photos: tuple[_Member, ...]

    @classmethod
    def read(cls, tars: Sequence[Path]) -> "TarTable":
        """The records, in the order of the files and of their photos in them.

        Raises:
            DataError: a file cannot be read or is compressed, a record is malformed or lacks a part, or there is none.
        """
        found = [record for tar in tars for record in _records(tar)]
        if not found:
            raise DataError(f"{tars[0]}: holds no records; expected pairs such as 0001.jpg and 0001.json")
        return cls(tuple(ask for ask, _ in found), tuple(photo for _, photo in found))

    def __len__(self) -> int:
        return len(self.asks)

    def shapes(self) -> Iterator[Shapes]:
        """See `Table.shapes`. Reads every photo."""
        return measured(self)

    def ask(self, row: int) -> Ask:
        """See `Table.ask`."""
        return self.asks[row]

    def photo(self, row: int) -> tuple[str, bytes]:
        """See `Table.photo`."""
        member = self.photos[row]
        name = f"{member.tar}, {member.name}"
        return name, read_part(member.tar, member.offset, member.size, name)

    def state(self) -> str:
        """See `Table.state`."""
        return state_of(dict.fromkeys(member.tar for member in self.photos))


def _records(tar: Path) -> list[tuple[Ask, _Member]]:
    asks: dict[str, Ask] = {}
    photos: dict[str, _Member] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                key = f"{folder}/{stem}"
                where = f"{tar}, {member.name}"
                if suffix == "json":
                    content = archive.extractfile(member)
                    asks[key] = parse_ask((content or io.BytesIO()).read(), where)[0]
                elif f".{suffix.lower()}" in IMAGE_FORMATS:
                    if key in photos:
                        raise DataError(f"{where}: is a second photo of the record {stem}; take it out")
                    photos[key] = _Member(tar, member.name, member.offset_data, member.size)
                else:
                    raise DataError(f"{where}: is neither a photo nor .json; take it out")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar}: is not a readable uncompressed tar file ({error})") from error
    for key in asks.keys() ^ photos.keys():
        lacks = "photo" if key in asks else "json"
        raise DataError(f"{tar}: the record {key.strip('/')} has no {lacks}; add it, or take the record out")
    return [(asks[key], photo) for key, photo in photos.items()]
