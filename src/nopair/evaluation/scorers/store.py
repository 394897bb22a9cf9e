"""What judges said, a JSON object a line, written as it comes: a run that stops goes on where it was.

A line is found by its key, a digest of all that was asked and shown, so an answer about another image, under another
text or by another judge is never taken for this one.
"""

from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nopair.data.files import make_folder
from nopair.errors import DataError, OutputError


class Record(BaseModel):
    """One question and what came back.

    `status` is "refused" where the server would not take the question (a content filter, most often); `text` is then
    its reason, and else the judge's words as they came. `finished` is False where they were cut at the token limit.
    `model` is who the server says has answered; "" where it does not.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    key: Annotated[str, Field(min_length=1)]
    editor: str
    place: str
    question: str
    judge: str
    status: Literal["answered", "refused"]
    text: str
    finished: bool
    input_tokens: int
    output_tokens: int
    date: str
    model: str = ""


class Store:
    """The records of one file; a context manager while it is written to.

    Attributes:
        records: by key, in the order in which they came.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there. A last line without an end was cut off when a run was killed, and is dropped.

        Raises:
            DataError: the file cannot be read, or holds a line that is no record.
        """
        self.path = path
        self.records: dict[str, Record] = {}
        self._file: TextIO | None = None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
        self._whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].splitlines(), start=1):
            try:
                record = Record.model_validate_json(line)
            except ValidationError as error:
                raise DataError(
                    f"{path}, line {number}: is no judge's answer ({error.errors()[0]['msg']}); take the line out"
                ) from None
            self.records[record.key] = record

    def __enter__(self) -> "Store":
        make_folder(self.path.parent)
        try:
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._file.truncate(self._whole)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); choose another place") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, record: Record) -> None:
        """Keep a record, on disk before this returns.

        Raises:
            OutputError: it cannot be written.
        """
        assert self._file is not None, "the store is open only within `with`"
        try:
            self._file.write(record.model_dump_json() + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); check the disk space") from error
        self.records[record.key] = record


def usage_of(path: Path) -> Path:
    """Where it is noted what the answers in a store's file took."""
    return path.with_suffix(".usage")
