"""Where a comparison's files lie below its folder."""

from pathlib import Path

from nopair.data.files import file_name


def outputs_of(output: Path, editor: str) -> Path:
    """An editor's images, and what they were made for and with."""
    return output / "outputs" / file_name(editor)


def replies_of(output: Path, judge: str) -> Path:
    """A judge's answers."""
    return output / "replies" / f"{file_name(judge)}.jsonl"
