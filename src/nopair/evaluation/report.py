"""Results of a run as files: grid.png, report.html (one file, no scripts) and results.json."""

import json
from pathlib import Path

from nopair.data.files import make_folder, write_atomic
from nopair.data.images import encode
from nopair.evaluation.grid import draw_grid
from nopair.evaluation.page import render_page
from nopair.evaluation.results import Report, to_results


def write_report(directory: Path, report: Report) -> None:
    """Write the three files into `directory`, each complete or not at all, results.json last.

    Raises:
        OutputError: the folder or a file in it cannot be written.
    """
    grid = encode(draw_grid(report.examples), "PNG")
    page = render_page(report, grid)
    results = json.dumps(to_results(report), indent=2, allow_nan=False) + "\n"
    make_folder(directory)
    write_atomic(directory / "grid.png", grid)
    write_atomic(directory / "report.html", page.encode("utf-8"))
    write_atomic(directory / "results.json", results.encode("utf-8"))
