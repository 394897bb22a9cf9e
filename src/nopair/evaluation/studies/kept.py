"""What a study keeps: JSON files, written whole."""

import json
from pathlib import Path
from typing import Any

from nopair.data.files import write_atomic
from nopair.errors import OutputError


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises OutputError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}); remove it and start the study again") from None


def write_json(path: Path, value: Any) -> None:
    """Complete or absent. Raises OutputError if it cannot be written."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())
