"""Questions about edits, put to a judge many at a time, each answer kept as it comes."""

import datetime
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nopair.data.images import encode, load_image, longer_side, shrink
from nopair.digests import file_digest
from nopair.endpoints.messages import Ask, Picture, Reply
from nopair.endpoints.server import Usage, told_cost, told_guess
from nopair.errors import ContentRefusedError, EndpointError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.crowd import tell_each
from nopair.evaluation.scorers.judge import Asked, ScoringJudge
from nopair.evaluation.scorers.reply import Unreadable, read_scores
from nopair.evaluation.scorers.rubric import Rubric, Template
from nopair.evaluation.scorers.rules import Marks, Rule
from nopair.evaluation.scorers.store import Record, Store, usage_of
from nopair.evaluation.spending import noted

SYSTEM: Final = "You judge edited images."
_QUOTED: Final = 200
"""Letters of a refusal in a problem; the store has all of it."""
CUT: Final = "as it was cut short"
"""How the problem ends of an answer for which a judge had too few tokens."""
MORE_TOKENS: Final = "give it more with ,tokens=N"
FIRST: Final = 16
"""Answers of a judge none of which can be read, until it is taken to be one that gives none."""


@dataclass(frozen=True, slots=True)
class Task:
    """An item and one editor's output of it. `stale`: what is there now is of another edit, and will be made anew."""

    editor: str
    item: Item
    output: Path
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What will be asked about a task. `key` is a digest of all of it."""

    key: str
    task: Task
    template: Template
    prompt: str


@dataclass(frozen=True, slots=True)
class JudgedScorer:
    """A rubric, how its answers become marks, and the judge who answers."""

    rubric: Rubric
    rule: Rule
    judge: ScoringJudge

    def questions(self, tasks: Sequence[Task]) -> Iterator[Question]:
        """All that is to be asked, without what the rubric has no words for. Of outputs that are not there yet,
        each counts as an image of its own.

        Raises:
            DataError: an output's file cannot be read.
            ImageError: a source is no image.
        """
        for task in tasks:
            made = task.output.is_file() and not task.stale
            output = file_digest(task.output) if made else f"not made by {task.editor}: {task.item.place}"
            shown = [file_digest(task.item.source), output]
            side = self.judge.longest_side
            if side is not None and longer_side(task.item.source) > side:  # smaller ones are shown as they always were
                shown.append(f"at most {side} pixels long")
            for template in self.rubric.questions:
                prompt = self.rubric.prompt(template, task.item.category, task.item.instruction)
                if prompt is not None:
                    yield Question(self._key(template, prompt, shown), task, template, prompt)

    def _key(self, template: Template, prompt: str, shown: Sequence[str]) -> str:
        judge: list[str | int] = [self.judge.name, self.judge.version, self.judge.most_tokens]
        if self.judge.temperature is None:
            judge.append("the server's own temperature")
        asked = json.dumps([*judge, template.name, list(template.shows), prompt, *shown])
        return hashlib.sha256(asked.encode("ascii")).hexdigest()

    def marks(self, task: Task, store: Store, failed: Mapping[str, str]) -> tuple[Marks, tuple[str, ...]]:
        """One edit's marks from the answers that are there, and why others are not. `failed` is from `ask_all`."""
        answers: dict[str, tuple[float, ...] | None] = {}
        problems = []
        asked = {question.template.name: question for question in self.questions([task])}
        for template in self.rubric.questions:
            name = template.name
            read = self._read(asked.get(name), store, failed)
            answers[name] = None if isinstance(read, Unreadable) else read
            if isinstance(read, Unreadable):
                problems.append(f"{name}: {read.why}")
        return self.rule.marks(answers), tuple(problems)

    def _read(
        self, question: Question | None, store: Store, failed: Mapping[str, str]
    ) -> tuple[float, ...] | Unreadable:
        if question is None:
            return Unreadable(f"{self.rubric.name} has no words for this category of edit")
        record = store.records.get(question.key)
        if record is None:
            return Unreadable(failed.get(question.key, "not asked yet"))
        return self.read(record, question.template)

    def read(self, record: Record, template: Template) -> tuple[float, ...] | Unreadable:
        """The numbers of an answer, or why there are none."""
        if record.status == "refused":
            return Unreadable(f"refused ({' '.join(record.text.split())[:_QUOTED]})")
        read = read_scores(record.text, template, self.rubric.low, self.rubric.high)
        if isinstance(read, Unreadable):
            return Unreadable(f"the answer {read.why}{'' if record.finished else f', {CUT}'}")
        return read


def open_questions(scorer: JudgedScorer, tasks: Sequence[Task], store: Store) -> list[Question]:
    """What has no answer in the store yet, each once."""
    return list({each.key: each for each in scorer.questions(tasks) if each.key not in store.records}.values())


def told_estimate(scorer: JudgedScorer, questions: Sequence[Question]) -> str:
    """What asking them takes, in words, before it begins."""
    server = scorer.judge.server
    images = sum(len(question.template.shows) for question in questions)
    if server is None:
        return f"{scorer.judge.name}: {len(questions)} questions about {images} images, answered here"
    text = sum(len((SYSTEM + question.prompt).encode("utf-8")) for question in questions) // 3
    usage = Usage(
        requests=len(questions),
        input_tokens=text + images * server.image_tokens,
        output_tokens=len(questions) * scorer.judge.most_tokens,
    )
    return (
        f"{scorer.judge.name}: {len(questions)} questions, {images} images; about {told_cost(server, usage)}, if every "
        f"answer is as long as it may be; {told_guess(server)}"
    )


@dataclass(frozen=True, slots=True)
class Asking:
    """What came of asking.

    Attributes:
        failed: why questions have no answer, by key.
        usage: what was used.
        ended: why it ended before all was asked: the server refuses us altogether, is gone, or says nothing that can be
            read. None if it did not.
    """

    failed: Mapping[str, str]
    usage: Usage
    ended: EndpointError | None


async def ask_all(
    scorer: JudgedScorer, questions: Sequence[Question], store: Store, told: Callable[[int], None]
) -> Asking:
    """Ask; answers go into `store`.

    `told` is called with the number of questions done. No answer is ever made up.

    Raises:
        OutputError: the store cannot be written.
    """
    failed: dict[str, str] = {}
    ended: EndpointError | None = None
    server = scorer.judge.server
    done = itertools.count(1)
    watch = _Watch(scorer, store)

    def tell(question: Question, problem: str | None) -> None:
        if problem is not None:
            failed[question.key] = problem
        told(next(done))

    async with scorer.judge.session() as asked:

        async def ask(question: Question) -> None:
            record = await _ask(scorer, question, asked)
            store.add(record)
            watch.see(record)

        at_once = 1 if server is None else server.concurrency
        try:
            with noted(usage_of(store.path), server, lambda: asked.usage):
                await tell_each(questions, at_once, ask, tell, heard=bool(store.records))
        except EndpointError as error:
            ended = error
            unanswered = [question.key for question in questions if question.key not in store.records]
            failed = dict.fromkeys(unanswered, str(error)) | failed
        return Asking(failed, asked.usage, ended)


class _Watch:
    """Ends the asking of a judge whose answers cannot be read: each would be paid for nothing."""

    def __init__(self, scorer: JudgedScorer, store: Store) -> None:
        self._scorer = scorer
        self._templates = {template.name: template for template in scorer.rubric.questions}
        self._path = store.path
        known = (record for record in store.records.values() if record.question in self._templates)
        self._readable = any(self._why(record) is None for record in known)
        self._unreadable = 0

    def see(self, record: Record) -> None:
        """Count an answer. Refusals say nothing of a judge's answers.

        Raises:
            EndpointError: none of its first ones can be read.
        """
        if self._readable or record.status == "refused":
            return
        why = self._why(record)
        self._readable = why is None
        self._unreadable += 1
        if why is not None and self._unreadable >= FIRST:
            advice = MORE_TOKENS if why.endswith(CUT) else "take another judge, or other words with --rubric"
            raise EndpointError(
                f"none of its first {FIRST} answers can be read ({why}); see {self._path}, and {advice}"
            )

    def _why(self, record: Record) -> str | None:
        """Why an answer is unreadable; None if it is not."""
        read = self._scorer.read(record, self._templates[record.question])
        return read.why if isinstance(read, Unreadable) else None


async def _ask(scorer: JudgedScorer, question: Question, asked: Asked) -> Record:
    task = question.task
    source = load_image(task.item.source)
    if scorer.judge.longest_side is not None:
        source = shrink(source, scorer.judge.longest_side)
    edited = _resized(load_image(task.output), source.shape[1], source.shape[2])
    shown = {"source": source, "edited": edited}
    pictures = [Picture(encode(shown[name], "PNG"), "image/png") for name in question.template.shows]
    ask = Ask(SYSTEM, (question.prompt, *pictures), max_tokens=scorer.judge.most_tokens, temperature=0.0)
    try:
        reply = await asked.chat(ask)
    except ContentRefusedError as error:
        return record_of(question.key, task, question.template.name, scorer.judge.name, "refused", error.words)
    return record_of(question.key, task, question.template.name, scorer.judge.name, "answered", reply.text, reply)


def record_of(
    key: str,
    task: Task,
    question: str,
    judge: str,
    status: Literal["answered", "refused"],
    text: str,
    reply: Reply | None = None,
) -> Record:
    """A record of now."""
    return Record(
        key=key,
        editor=task.editor,
        place=task.item.place,
        question=question,
        judge=judge,
        status=status,
        text=text,
        finished=reply is None or reply.finished,
        model="" if reply is None else reply.model,
        input_tokens=0 if reply is None else reply.usage.input_tokens,
        output_tokens=0 if reply is None else reply.usage.output_tokens,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _resized(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    """To the size that the source is shown at, as GEdit-Bench's makers do before they ask."""
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
