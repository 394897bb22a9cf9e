"""docs/results.md from the results of studies in docs/results/, as `nopair study NAME` writes them. Prints the page."""

import json
from pathlib import Path

from nopair.evaluation.studies.catalogue import STUDIES
from nopair.evaluation.studies.report import markdown

RESULTS = Path(__file__).parents[1] / "docs" / "results"
INTRODUCTION = """# Results of studies

Each table is a study: editors trained side by side from the tiny base with the recipe `study` (120 steps of 8 records
after 20 steps of warm-up), changed in one thing, with three seeds each; scored by the oracle on the same held-out
edits. `free-form` alone goes on from the shipped editor, for 220 steps; and in `judge-scale` *128 wide, trained on* is
`tiny:judge-2`. Means ± standard deviation over seeds. `nopair study NAME` trains
and scores all of it again; `python benchmarks/results.py > docs/results.md` writes this page from docs/results/*.json.

Compare rows within a table. Rows of different tables come from different machines and do not compare beyond their
spread: one recipe with the same seeds is *caption alone* in `context` (overall 0.210 ± 0.045) and *full* in
`objective` (0.221 ± 0.021). Where a table has no processor seconds, machine
and date below it are those of summing up: a run that another study had done before may come from another machine.
Seconds are those of the clock, beside other work, and do not compare at all.

These editors are far from trained: the recipe stops where differences between objectives can be seen in a few minutes,
not where editing is learnt (the shipped editor took 6,450 steps of 16)."""


def page() -> str:
    """The whole page, studies in the catalogue's order."""
    found = [RESULTS / f"{name}.json" for name in STUDIES]
    tables = [markdown(json.loads(path.read_text(encoding="utf-8"))) for path in found if path.exists()]
    return "\n\n".join([INTRODUCTION, *tables]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
