"""What the runs of a study add up to."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nopair.evaluation.studies.design import Study
from nopair.evaluation.studies.judges import read_audit
from nopair.evaluation.studies.origin import span, together
from nopair.evaluation.studies.run import SCENES, Job, read_result

MEASURES: Final = ("success", "preservation", "realism", "overall")
JUDGED: Final = ("judge_edit", "judge_identity")
ORIGIN: Final = ("seconds", "processor_seconds", "machine", "version", "date")
"""What is told of a run's making."""


def sum_up(study: Study, jobs: Sequence[Job], command: str) -> dict[str, Any]:
    """A study's results, as docs/results/NAME.json holds them. All `jobs` must be done.

    A configuration is a variant at a number of sampling steps; its `spread` is the standard deviation over seeds (0 for
    one seed), `runs` are the single ones, each with where, when and with what it was made. `seconds` are those of
    training by the clock, `processor_seconds` those its threads computed; both are means over seeds, the latter None
    where a seed's are not known. `failed` counts seeds whose training broke down: they are in no mean, and a
    configuration in which all did has none. Where the study audits judges, `audit` is that of the configuration's.
    `machine` and `version` are all that the runs were made on and with, `date` is the span in which they were done.
    """
    configurations: list[dict[str, Any]] = []
    done = [read_result(job.folder) for job in jobs]
    for variant in study.variants:
        own = [number for number, job in enumerate(jobs) if job.variant == variant]
        results = [done[number] for number in own]
        audit = {"audit": read_audit(jobs[own[0]])} if study.audited else {}
        for place, name in _places(variant.name, results):
            configurations.append(_configuration(name, place, results) | audit)
    return {
        "study": study.name,
        "question": study.question,
        "claim": study.claim,
        "configurations": configurations,
        "edits": len(study.categories) * jobs[0].per_category,
        "scenes_seed": SCENES,
        "scorer": study.scorer,
        "command": command,
        "date": span(result["date"] for result in done),
        "machine": together(result["machine"] for result in done),
        "version": together(result["version"] for result in done),
    }


def _places(name: str, results: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Where in `marks` each of a variant's configurations is, and what it is called."""
    steps = next(([row["steps"] for row in result["marks"]] for result in results if result["marks"]), [0])
    if len(steps) == 1:
        return [(0, name)]
    return [(place, f"{name}, {count} step{'s' if count > 1 else ''}") for place, count in enumerate(steps)]


def _configuration(name: str, place: int, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [result for result in results if result["failed"] is None]
    runs = [
        {"seed": result["seed"], **result["marks"][place], **{key: result[key] for key in ORIGIN}} for result in whole
    ]
    found: dict[str, Any] = {"name": name, "seeds": [result["seed"] for result in results]}
    found["failed"] = len(results) - len(whole)
    found["updates"] = results[0]["updates"]
    for price in ("seconds", "processor_seconds"):
        taken = [result[price] for result in whole]
        found[price] = statistics.fmean(taken) if taken and None not in taken else None
    means = {measure: [run[measure] for run in runs] for measure in (*MEASURES, *JUDGED) if runs and measure in runs[0]}
    found |= {measure: statistics.fmean(values) for measure, values in means.items()}
    found["spread"] = {
        measure: statistics.stdev(values) if len(values) > 1 else 0.0 for measure, values in means.items()
    }
    found["runs"] = runs
    return found


def shown(configuration: Mapping[str, Any], measure: str) -> str:
    """Mean ± spread as text; a dash where there is none."""
    value = configuration.get(measure)
    if value is None or not math.isfinite(value):
        return "–"
    spread = configuration["spread"][measure]
    return f"{value:.3f} ± {spread:.3f}" if len(configuration["runs"]) > 1 else f"{value:.3f}"
