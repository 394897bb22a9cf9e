"""A run that only counts, and stops on signals as training does. Processes of their own import it, so without torch."""

import os
import time
from pathlib import Path

from nopair.training.signals import stop_on_signals

ENOUGH = "enough"
"""A file beside the runs' folders; while it is not there, they count on."""
MOST = 3000
"""Where a run ends that nobody stops: a failing test is to end, too."""


def count(folder: Path) -> None:
    """One more every 10 ms, kept in `folder` when it ends or is stopped; goes on from what is kept there. `pid` there
    says that it has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "count"
    number = int(kept.read_text()) if kept.exists() else 0
    with stop_on_signals() as stop:
        while stop.signal is None and number < MOST and not (folder.parent / ENOUGH).exists():
            time.sleep(0.01)
            number += 1
            if not (folder / "pid").exists():
                (folder / "pid").write_text(str(os.getpid()))
    kept.write_text(str(number))
    if stop.signal is not None:
        os._exit(128 + stop.signal)
    (folder / "done").touch()
