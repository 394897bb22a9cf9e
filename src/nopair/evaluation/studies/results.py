"""What the runs of a study add up to."""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import torch

from nopair.evaluation.studies.design import Study
from nopair.evaluation.studies.judges import read_audit
from nopair.evaluation.studies.run import SCENES, Job, read_result

MEASURES: Final = ("success", "preservation", "realism", "overall")
JUDGED: Final = ("judge_edit", "judge_identity")


def sum_up(study: Study, jobs: Sequence[Job], command: str) -> dict[str, Any]:
    """A study's results, as docs/results/NAME.json holds them. All `jobs` must be done.

    A configuration is a variant at a number of sampling steps; its `spread` is the standard deviation over seeds (0 for
    one seed), `runs` are the single ones. `failed` counts seeds whose training broke down: they are in no mean, and a
    configuration in which all did has none. Where the study audits judges, `audit` is that of the configuration's.
    """
    configurations: list[dict[str, Any]] = []
    for variant in study.variants:
        own = [job for job in jobs if job.variant == variant]
        results = [read_result(job.folder) for job in own]
        audit = {"audit": read_audit(own[0])} if study.audited else {}
        for place, name in _places(variant.name, results):
            configurations.append(_configuration(name, place, results) | audit)
    return {
        "study": study.name,
        "question": study.question,
        "claim": study.claim,
        "configurations": configurations,
        "edits": len(study.categories) * jobs[0].scale.per_category,
        "scenes_seed": SCENES,
        "scorer": study.scorer,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def _places(name: str, results: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Where in `marks` each of a variant's configurations is, and what it is called."""
    steps = next(([row["steps"] for row in result["marks"]] for result in results if result["marks"]), [0])
    if len(steps) == 1:
        return [(0, name)]
    return [(place, f"{name}, {count} step{'s' if count > 1 else ''}") for place, count in enumerate(steps)]


def _configuration(name: str, place: int, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [result for result in results if result["failed"] is None]
    runs = [{"seed": result["seed"], **result["marks"][place]} for result in whole]
    found: dict[str, Any] = {"name": name, "seeds": [result["seed"] for result in results]}
    found["failed"] = len(results) - len(whole)
    found["updates"] = results[0]["updates"]
    found["seconds"] = statistics.fmean(result["seconds"] for result in whole) if whole else None
    means = {measure: [run[measure] for run in runs] for measure in (*MEASURES, *JUDGED) if runs and measure in runs[0]}
    found |= {measure: statistics.fmean(values) for measure, values in means.items()}
    found["spread"] = {
        measure: statistics.stdev(values) if len(values) > 1 else 0.0 for measure, values in means.items()
    }
    found["runs"] = runs
    return found


def machine() -> str:
    """What the runs ran on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def shown(configuration: Mapping[str, Any], measure: str) -> str:
    """Mean ± spread as text; a dash where there is none."""
    value = configuration.get(measure)
    if value is None or not math.isfinite(value):
        return "–"
    spread = configuration["spread"][measure]
    return f"{value:.3f} ± {spread:.3f}" if len(configuration["runs"]) > 1 else f"{value:.3f}"
