"""A scorer and who answers for it, as one thing that marks outputs, whether it asks a judge or compares features."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, final, runtime_checkable

from nopair.device import choose_device
from nopair.endpoints.server import Server
from nopair.errors import ConfigError, EndpointError
from nopair.evaluation.scorers.asking import JudgedScorer, Task, ask_all, open_questions, told_estimate
from nopair.evaluation.scorers.judge import load_scoring_judge
from nopair.evaluation.scorers.rubric import Rubric, official_imgedit, official_viescore, ours
from nopair.evaluation.scorers.rules import RULES, Marks
from nopair.evaluation.scorers.store import Store
from nopair.evaluation.specs import parse_spec

ScorerName = Literal["viescore", "imgedit", "similarity"]
FEATURES: Final = ("dino", "clip")
Told = Callable[[int, int], None]
"""Called with how many are done, of how many."""


@dataclass(frozen=True, slots=True)
class Marked:
    """What came of marking: why marks are missing, by key, and why it ended before all was done, or None."""

    failed: Mapping[str, str]
    ended: EndpointError | None = None


@runtime_checkable
class Marker(Protocol):
    """Who marks outputs. `measures` are the names of its marks, none above `high`. `leading` are those that sum up the
    others, or all where none does: charts and counts are of them.

    `model` is the judge's own name; "" if it is none. `temperature`: at which it answers; None if its server decides.
    `server`: where it is and what it costs; None if it runs here. `longest_side`: of the images that it is shown; None
    if they are shown as they are.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def server(self) -> Server | None: ...
    @property
    def longest_side(self) -> int | None: ...
    @property
    def measures(self) -> tuple[str, ...]: ...
    @property
    def leading(self) -> tuple[str, ...]: ...
    @property
    def high(self) -> float: ...

    def estimate(self, tasks: Sequence[Task], store: Store) -> str:
        """What is still to do, and what it costs, in words."""
        ...

    def mark(self, tasks: Sequence[Task], store: Store, told: Told) -> Marked:
        """Do it; answers go into the store."""
        ...

    def marks(self, task: Task, store: Store, failed: Mapping[str, str]) -> tuple[Marks, tuple[str, ...]]:
        """An output's marks, and why some are missing."""
        ...

    def words(self, task: Task, store: Store) -> tuple[str, ...]:
        """What was said about an output, as it came."""
        ...

    def answered_as(self, tasks: Sequence[Task], store: Store) -> tuple[str, ...]:
        """What servers call those who answered about these outputs, sorted."""
        ...


@final
@dataclass(frozen=True, slots=True)
class JudgeMarker:
    """A `Marker` that asks a judge."""

    scorer: JudgedScorer

    @property
    def name(self) -> str:
        """The judge's."""
        return self.scorer.judge.name

    @property
    def version(self) -> str:
        """The judge's."""
        return self.scorer.judge.version

    @property
    def model(self) -> str:
        """The judge's."""
        return self.scorer.judge.model

    @property
    def temperature(self) -> float | None:
        """The judge's."""
        return self.scorer.judge.temperature

    @property
    def server(self) -> Server | None:
        """The judge's."""
        return self.scorer.judge.server

    @property
    def longest_side(self) -> int | None:
        """The judge's."""
        return self.scorer.judge.longest_side

    @property
    def measures(self) -> tuple[str, ...]:
        """The rule's."""
        return self.scorer.rule.measures

    @property
    def leading(self) -> tuple[str, ...]:
        """The most important of the rule's."""
        return self.measures[-1:]

    @property
    def high(self) -> float:
        """The rule's."""
        return self.scorer.rule.high

    def estimate(self, tasks: Sequence[Task], store: Store) -> str:
        """See `Marker.estimate`."""
        return told_estimate(self.scorer, open_questions(self.scorer, tasks, store))

    def mark(self, tasks: Sequence[Task], store: Store, told: Told) -> Marked:
        """See `Marker.mark`."""
        questions = open_questions(self.scorer, tasks, store)
        if not questions:
            return Marked({})
        found = asyncio.run(ask_all(self.scorer, questions, store, lambda done: told(done, len(questions))))
        return Marked(found.failed, found.ended)

    def marks(self, task: Task, store: Store, failed: Mapping[str, str]) -> tuple[Marks, tuple[str, ...]]:
        """See `Marker.marks`."""
        return self.scorer.marks(task, store, failed)

    def answered_as(self, tasks: Sequence[Task], store: Store) -> tuple[str, ...]:
        """See `Marker.answered_as`."""
        asked = (store.records.get(question.key) for question in self.scorer.questions(tasks))
        return tuple(sorted({record.model for record in asked if record is not None and record.model}))

    def words(self, task: Task, store: Store) -> tuple[str, ...]:
        """See `Marker.words`."""
        keys = [question.key for question in self.scorer.questions([task])]
        return tuple(
            f"{store.records[key].question}: {store.records[key].text}" for key in keys if key in store.records
        )


def markers_of(
    name: ScorerName, judges: Sequence[str], features: Sequence[str], rubric: Path | None, device: str
) -> list[Marker]:
    """One for each judge, or one for all features.

    Raises:
        ConfigError: what the scorer needs is not given, or more than it can use.
        ModelError: a local model cannot be used.
        MissingExtraError: an endpoint is named without the library to ask it.
    """
    if name == "similarity":
        if judges or rubric is not None:
            raise ConfigError("similarity compares features and asks no judge; leave out --judge and --rubric")
        return [_similarity(features, device)]
    if features:
        raise ConfigError(f"{name} asks a judge and compares no features; leave out --features")
    if not judges:
        raise ConfigError(f"{name} needs a judge; give --judge endpoint:URL,model=NAME or --judge local:FOLDER")
    words = _rubric(name, rubric)
    return [JudgeMarker(JudgedScorer(words, RULES[name], load_scoring_judge(text, device))) for text in judges]


def rubric_facts(name: ScorerName, rubric: Path | None) -> dict[str, Any]:
    """What a result says of the words that were used."""
    if name == "similarity":
        return {"rubric": None, "version": None, "official": None}
    words = _rubric(name, rubric)
    return {"rubric": words.name, "version": words.version, "official": rubric is not None}


def _rubric(name: Literal["viescore", "imgedit"], path: Path | None) -> Rubric:
    if path is None:
        return ours(name)
    return official_viescore(path) if name == "viescore" else official_imgedit(path)


def _similarity(features: Sequence[str], device: str) -> Marker:
    from nopair.evaluation.scorers.similarity import FeatureMarker, SimilarityScorer, load_clip, load_dino

    specs = [parse_spec(text, FEATURES) for text in features]
    if not specs or len({spec.kind for spec in specs}) != len(specs):
        raise ConfigError("similarity needs --features dino:FOLDER, --features clip:FOLDER, or both, each once")
    place = choose_device(device)
    loaded = []
    for spec in specs:
        spec.only()
        loaded.append((load_dino if spec.kind == "dino" else load_clip)(Path(spec.place), place))
    return FeatureMarker(SimilarityScorer(tuple(loaded)))
