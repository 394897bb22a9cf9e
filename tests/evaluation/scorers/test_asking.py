"""Scoring by a judge behind an endpoint: a real local server that sees the images, fails, refuses and rambles."""

import asyncio
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from nopair.data.images import save_image
from nopair.endpoints.server import Server, Usage
from nopair.errors import ConfigError, DataError, EndpointError, OutputError
from nopair.evaluation.scorers.asking import JudgedScorer, Task, ask_all, open_questions, told_estimate
from nopair.evaluation.scorers.judge import EndpointJudge, load_scoring_judge
from nopair.evaluation.scorers.rubric import ours
from nopair.evaluation.scorers.rules import RULES
from nopair.evaluation.scorers.store import Store

Make = Callable[..., Task]
BLUE = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 16, 16)
GUESS = "{} tokens for an image are a guess, image_tokens=N is another"
GOOD = '{"score": [8, 9], "reasoning": "fine"}'


def scorer_of(url: str, rubric: str = "viescore", **changes: Any) -> JudgedScorer:
    settings = {"first_wait": 0.01, "longest_wait": 0.1, "timeout": 5.0, "attempts": 2, "concurrency": 3} | changes
    server = Server(url=url, model="toy-vlm", **settings)
    return JudgedScorer(ours(rubric), RULES[rubric], EndpointJudge("toy-vlm", "2026-01", server))


def ask(scorer: JudgedScorer, tasks: Sequence[Task], path: Path) -> tuple[Store, dict[str, str], Usage]:
    """Whatever ended it is raised."""
    store = Store(path)
    with store:
        found = asyncio.run(ask_all(scorer, open_questions(scorer, tasks, store), store, lambda done: None))
    if found.ended is not None:
        raise found.ended
    return store, dict(found.failed), found.usage


def pixels(content: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(content))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).float() / 255


def seeing(module: ModuleType) -> Callable[[Any], Any]:
    """A judge in closed form: blue is what was asked for; it looks at the images that it is sent."""

    def script(asked: Any) -> Any:
        shown = [pixels(content) for content in asked.images]
        noise = 10 * min(1.0, float(shown[-1].std(0).mean()) * 10)
        if len(shown) == 1:
            return module.Say(json.dumps({"score": [10 - noise, 10 - noise]}))
        before, after = (image.mean(0) for image in shown)
        asked_for = 10 * max(0.0, 1 - float((after - torch.tensor([0.0, 0.0, 1.0])).abs().mean()) * 1.5)
        return module.Say(json.dumps({"score": [asked_for, 10 - noise], "reasoning": str(before.tolist())}))

    return script


def test_a_target_a_copy_and_noise_get_the_order_that_they_must(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 16, 16)
    shown = {"target": BLUE, "half": (red + BLUE) / 2, "copy": red, "noise": torch.rand(3, 40, 24)}
    tasks = [make_task(name, image) for name, image in shown.items()]
    with endpoint_server.serve(seeing(endpoint_server)) as server:
        scorer = scorer_of(server.url)
        store, failed, usage = ask(scorer, tasks, tmp_path / "replies.jsonl")
    assert not failed
    marks = {task.item.place: scorer.marks(task, store, failed)[0] for task in tasks}
    assert marks["target"] == {"SC": 10.0, "PQ": 10.0, "O": 10.0}
    assert marks["copy"] == {"SC": 0.0, "PQ": 10.0, "O": 0.0}
    assert marks["target"]["O"] > marks["half"]["O"] > marks["copy"]["O"]
    assert marks["noise"] == {"SC": 0.0, "PQ": 0.0, "O": 0.0}
    assert usage == Usage(8, 0, 800, 80)
    assert server.most_at_once <= 3
    bodies = [one.json for one in server.asked]
    assert all(body["temperature"] == 0 and body["model"] == "toy-vlm" for body in bodies)
    sizes = {Image.open(io.BytesIO(content)).size for one in server.asked for content in one.images}
    assert sizes == {(16, 16)}, "an output is shown at the size of its source"
    both = [one for one in server.asked if len(one.images) == 2]
    assert all(torch.equal(pixels(one.images[0]).mean(0), torch.tensor([1.0, 0, 0])) for one in both), "source first"
    assert all("make it blue" in one.text for one in both)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    tasks = [make_task(str(i), BLUE * (1 - i / 10), instruction=f"edit {i}") for i in range(4)]
    path = tmp_path / "replies.jsonl"
    with endpoint_server.serve(lambda asked: endpoint_server.Say(GOOD)) as server:
        ask(scorer_of(server.url), tasks[:2], path)
        assert len(server.asked) == 4
        with path.open("a") as file:
            file.write('{"key": "cut of')
        store, _, _ = ask(scorer_of(server.url), tasks, path)
        assert len(server.asked) == 8
        assert len(path.read_text().splitlines()) == 8
        scorer = scorer_of(server.url)
        assert not open_questions(scorer, tasks, Store(path))
        tasks[0].output.write_bytes(tasks[0].item.source.read_bytes())  # edited anew: an old answer is not about it
        assert [one.task.item.place for one in open_questions(scorer, tasks, Store(path))] == ["0", "0"]
    assert {record.text for record in store.records.values()} == {GOOD}
    path.write_text("no record\n")
    with pytest.raises(DataError, match="line 1: is no judge's answer"):
        Store(path)


def test_what_is_not_answered_is_missing_and_says_why(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    """Busy at first, a content filter, an unreadable answer, one cut short, a broken image."""
    names = ("good", "busy", "filter", "rambling", "cut", "broken")
    tasks = {name: make_task(name, BLUE, instruction=f"{name} please") for name in names}
    tasks["broken"].output.write_bytes(b"no image")
    seen: set[str] = set()

    def script(asked: Any) -> Any:
        if len(asked.images) == 1:
            return endpoint_server.Say(GOOD)
        word = asked.text.partition(" please")[0].split()[-1]
        if word == "busy" and word not in seen:
            seen.add(word)
            return endpoint_server.Fail(429, {"retry-after": "0.01"})
        if word == "filter":
            return endpoint_server.Fail(400, message="content policy")
        if word == "rambling":
            return endpoint_server.Say("A fine picture, 9 of 10.")
        return endpoint_server.Say(GOOD[:20] if word == "cut" else GOOD, finish="length" if word == "cut" else "stop")

    with endpoint_server.serve(script) as server:
        scorer = scorer_of(server.url)
        store, failed, _ = ask(scorer, list(tasks.values()), tmp_path / "replies.jsonl")
        again = open_questions(scorer, list(tasks.values()), store)
    found = {name: scorer.marks(task, store, failed) for name, task in tasks.items()}
    for name in ("good", "busy"):
        assert found[name] == ({"SC": 8.0, "PQ": 8.0, "O": 8.0}, ())
    for name, why in (
        ("filter", "SC: refused"),
        ("rambling", 'SC: the answer holds no JSON object with a "score"'),
        ("cut", "as it was cut short"),
    ):
        marks, problems = found[name]
        assert marks == {"SC": None, "PQ": 8.0, "O": None}
        assert len(problems) == 1
        assert why in problems[0]
    assert found["broken"][0] == {"SC": None, "PQ": None, "O": None}
    assert all("not a readable" in problem for problem in found["broken"][1])
    assert {one.task.item.place for one in again} == {"broken"}, "the others were answered, badly or well"
    refused = [record for record in store.records.values() if record.status == "refused"]
    assert len(refused) == 1
    assert "content policy" in refused[0].text


def test_a_server_that_is_gone_ends_the_run_and_keeps_what_was_answered(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    tasks = [make_task(str(i), BLUE, instruction=f"edit {i}") for i in range(20)]
    script = lambda asked: endpoint_server.Say(GOOD) if asked.number < 5 else endpoint_server.Fail(503)  # noqa: E731
    with endpoint_server.serve(script) as server, pytest.raises(EndpointError, match="503"):
        ask(scorer_of(server.url, concurrency=1, attempts=1), tasks, tmp_path / "replies.jsonl")
    assert len(server.asked) == 5 + 8
    store = Store(tmp_path / "replies.jsonl")
    assert len(store.records) == 5
    with endpoint_server.serve(script) as server, store:
        scorer = scorer_of(server.url, concurrency=1, attempts=1)
        found = asyncio.run(ask_all(scorer, open_questions(scorer, tasks, store), store, lambda done: None))
    assert len(store.records) == 10
    assert len(found.failed) == 21 - 10, "also those that were not tried have a reason"
    assert all("503" in why for why in found.failed.values())
    with pytest.raises(EndpointError):
        ask(scorer_of("http://127.0.0.1:9/v1", attempts=1), tasks[:1], tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("finish", "words", "advice"),
    [("length", "I think that", "tokens=N"), ("stop", "A fine picture.", "another judge")],
)
def test_a_judge_that_says_nothing_readable_is_not_asked_on(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path, finish: str, words: str, advice: str
) -> None:
    """And one that once did is."""
    tasks = [make_task(str(i), BLUE * (1 - i / 50), instruction=f"edit {i}") for i in range(20)]
    path = tmp_path / "replies.jsonl"
    with endpoint_server.serve(lambda asked: endpoint_server.Say(words, finish=finish)) as server:
        scorer = scorer_of(server.url, concurrency=1)
        with pytest.raises(EndpointError, match=rf"none of its first 16 answers .*replies\.jsonl, and .*{advice}"):
            ask(scorer, tasks, path)
        assert len(server.asked) == len(Store(path).records) == 16
        server.script = lambda one: endpoint_server.Say(GOOD if one.number == 31 else words, finish=finish)
        ask(scorer, tasks, path)
        assert len(server.asked) == len(Store(path).records) == 40, "15 more could not be read, and then one could"
        more = [make_task(f"more {i}", BLUE, instruction=f"other {i}") for i in range(20)]
        ask(scorer, more, path)
        assert len(Store(path).records) == 60, "in a later run, too; their quality was asked before"


def test_refusals_say_nothing_of_answers(make_task: Make, endpoint_server: ModuleType, tmp_path: Path) -> None:
    tasks = [make_task(str(i), BLUE * (1 - i / 50), instruction=f"edit {i}") for i in range(10)]
    with endpoint_server.serve(lambda asked: endpoint_server.Fail(400, message="content policy")) as server:
        ask(scorer_of(server.url, concurrency=1), tasks, tmp_path / "replies.jsonl")
        assert len(server.asked) == 20


def test_what_a_server_cannot_take_is_told_and_asked_again(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    """Refused for its form and not for its content: if it is all, the server is set up wrongly, and nothing is kept."""
    tasks = [make_task(str(i), BLUE, instruction=f"edit {i}") for i in range(10)]
    path, wrong = tmp_path / "replies.jsonl", endpoint_server.Fail(400, message="Unsupported parameter: max_tokens")
    with endpoint_server.serve(lambda asked: wrong) as server, pytest.raises(EndpointError, match="max_tokens"):
        ask(scorer_of(server.url, concurrency=1), tasks, path)
    assert len(server.asked) == 8
    assert not Store(path).records
    with endpoint_server.serve(lambda one: wrong if "edit 3" in one.text else endpoint_server.Say(GOOD)) as server:
        store, failed, _ = ask(scorer_of(server.url, concurrency=1), tasks, path)
        assert len(server.asked) == len(store.records) + 1
        assert ["max_tokens" in why for why in failed.values()] == [True]
        _, failed, _ = ask(scorer_of(server.url, concurrency=1), tasks, path)
        assert len(server.asked) == len(store.records) + 2, "the only one left; it does not end the run"
        assert len(failed) == 1
    more = [make_task(f"more {i}", BLUE, instruction=f"large {i}") for i in range(20)]
    with endpoint_server.serve(lambda one: endpoint_server.Fail(413)) as server:
        _, failed, _ = ask(scorer_of(server.url, concurrency=1), [*tasks, *more], path)
    assert len(failed) == 21, "it took others before, so these are its own affair"


@pytest.mark.parametrize("how", ["finish", "status"])
def test_a_filtered_content_is_kept_with_all_its_words_and_not_asked_again(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path, how: str
) -> None:
    message = {"role": "assistant", "content": None}
    reply = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "toy-vlm",
        "choices": [{"index": 0, "finish_reason": "content_filter", "message": message}],
    }  # fmt: skip
    why = f"rejected by our safety system: {'because ' * 60}of it"
    says = {"finish": endpoint_server.Raw(json.dumps(reply).encode()), "status": endpoint_server.Fail(403, message=why)}
    task = make_task("a", BLUE)
    with endpoint_server.serve(lambda asked: says[how]) as server:
        scorer = scorer_of(server.url, concurrency=1)
        store, failed, _ = ask(scorer, [task], tmp_path / "replies.jsonl")
        assert len(server.asked) == 2
        assert not failed
        assert not open_questions(scorer, [task], store)
    records = list(store.records.values())
    assert [record.status for record in records] == ["refused", "refused"]
    assert all(why in record.text for record in records) == (how == "status")
    assert scorer.marks(task, store, failed)[0] == {"SC": None, "PQ": None, "O": None}


def test_who_answers_is_kept_and_a_full_disk_ends_the_run(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [make_task(str(i), BLUE, instruction=f"edit {i}") for i in range(10)]
    with endpoint_server.serve(lambda asked: endpoint_server.Say(GOOD)) as server:
        store, _, _ = ask(scorer_of(server.url), tasks[:1], tmp_path / "replies.jsonl")
        assert {record.model for record in store.records.values()} == {"toy-vlm"}

        def full(store: Store, record: object) -> None:
            raise OutputError("the disk is full")

        monkeypatch.setattr(Store, "add", full)
        with pytest.raises(OutputError):
            ask(scorer_of(server.url, concurrency=1), tasks, tmp_path / "replies.jsonl")
    assert len(server.asked) == 2 + 1


def test_a_wrong_key_ends_the_run_at_once(make_task: Make, endpoint_server: ModuleType, tmp_path: Path) -> None:
    tasks = [make_task(str(i), BLUE) for i in range(9)]
    with endpoint_server.serve(lambda asked: endpoint_server.Fail(401)) as server:
        with pytest.raises(EndpointError, match="401"):
            ask(scorer_of(server.url, concurrency=1), tasks, tmp_path / "replies.jsonl")
        assert len(server.asked) == 1


def test_one_question_about_one_image_is_asked_once(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    """Two items with the same output, such as copies of one photo: its quality is one question."""
    tasks = [make_task("a", BLUE, instruction="dye it"), make_task("b", BLUE, instruction="remove it")]
    with endpoint_server.serve(lambda asked: endpoint_server.Say(GOOD)) as server:
        scorer = scorer_of(server.url)
        store, failed, _ = ask(scorer, tasks, tmp_path / "replies.jsonl")
        assert len(server.asked) == 3
    assert all(scorer.marks(task, store, failed)[0]["O"] == 8.0 for task in tasks)


def test_edits_of_one_photo_that_are_not_made_yet_are_several_questions(make_task: Make, tmp_path: Path) -> None:
    tasks = [make_task(place, BLUE, instruction=f"edit {place}") for place in ("a", "b")]
    tasks[1] = dataclasses.replace(tasks[1], item=dataclasses.replace(tasks[1].item, source=tasks[0].item.source))
    store, scorer = Store(tmp_path / "no.jsonl"), scorer_of("http://x/v1")
    assert len(open_questions(scorer, tasks, store)) == 3, "one and the same output is one question of quality"
    for task in tasks:
        task.output.unlink()
    assert len(open_questions(scorer, tasks, store)) == 4


def test_the_cost_is_told_before(make_task: Make, tmp_path: Path) -> None:
    scorer = scorer_of("http://x/v1", input_price=2.0, output_price=8.0, image_tokens=1000)
    tasks = [make_task(str(i), BLUE * (1 - i / 10), instruction=f"edit {i}") for i in range(3)]
    words = told_estimate(scorer, open_questions(scorer, tasks, Store(tmp_path / "no.jsonl")))
    assert "6 questions, 9 images" in words
    assert "3072 received" in words
    assert "about 6 answers" in words
    assert words.endswith("(0.05 USD), if every answer is as long as it may be; " + GUESS.format(1000))


def test_large_photos_are_shown_smaller_and_answers_at_two_sizes_do_not_mix(
    make_task: Make, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    """An image within the limit is shown as it is and keeps its key, whatever the limit."""
    large, small = (make_task(name, torch.rand(3, 30, 90), instruction=f"{name} hat") for name in ("large", "small"))
    save_image(torch.rand(3, 40, 80), large.item.source)

    def at(side: int | None) -> JudgedScorer:
        scorer = scorer_of(server.url)
        assert isinstance(scorer.judge, EndpointJudge)
        return dataclasses.replace(scorer, judge=dataclasses.replace(scorer.judge, longest_side=side))

    with endpoint_server.serve(lambda asked: endpoint_server.Say(GOOD)) as server:
        for number, (side, size) in enumerate([(None, (80, 40)), (20, (20, 10)), (60, (60, 30)), (80, (80, 40))]):
            asked = len(server.asked)
            ask(at(side), [large, small], tmp_path / "replies.jsonl")
            anew = [one for one in server.asked[asked:] if "small" not in one.text]
            sizes = [Image.open(io.BytesIO(content)).size for one in anew for content in one.images]
            assert {shown for shown in sizes if shown != (16, 16)} == ({size} if number < 3 else set())
            assert len(server.asked) - asked == (4, 2, 2, 0)[number]


def test_imgedit_asks_by_type(make_task: Make, endpoint_server: ModuleType, tmp_path: Path) -> None:
    tasks = [make_task("a", BLUE, "remove"), make_task("b", BLUE, "style"), make_task("c", BLUE, "dance")]
    with endpoint_server.serve(lambda asked: endpoint_server.Say('{"score": [5, 4, 3]}')) as server:
        scorer = scorer_of(server.url, "imgedit")
        store, failed, _ = ask(scorer, tasks, tmp_path / "replies.jsonl")
    assert len({one.text for one in server.asked}) == len(server.asked) == 2
    assert [scorer.marks(task, store, failed)[0]["score"] for task in tasks] == [4.0, 4.0, None]
    assert "no words for this category" in scorer.marks(tasks[2], store, failed)[1][0]


def test_judges_are_named_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load_scoring_judge(
        "endpoint:http://localhost:1/v1,model=org/vlm,version=2026-01,key=SCORE_KEY,concurrency=4,input_price=2.5",
        "cpu",
    )
    assert isinstance(judge, EndpointJudge)
    assert (judge.name, judge.version, judge.server.concurrency) == ("org/vlm", "2026-01", 4)
    alias = load_scoring_judge("endpoint:http://localhost:1/v1,model=org/vlm,name=a,version=v1", "cpu")
    assert (alias.name, alias.version, alias.model) == ("a", "v1", "org/vlm")
    assert (judge.server.key_variable, judge.server.input_price) == ("SCORE_KEY", 2.5)
    assert (judge.longest_side, judge.most_tokens) == (1024, 512)
    assert load_scoring_judge("endpoint:http://a/v1,model=a,longest_side=768", "cpu").longest_side == 768
    odd = "endpoint:http://a/v1,model=a,max_tokens_field=max_completion_tokens,temperature=omit,longest_wait=600"
    other = load_scoring_judge(odd, "cpu")
    assert isinstance(other, EndpointJudge)
    assert (other.server.max_tokens_field, other.temperature) == ("max_completion_tokens", None)
    assert (other.server.longest_wait, judge.temperature) == (600.0, 0.0)
    for text, why in (
        ("endpoint:http://a/v1,model=a,temperature=1", "temperature: Input should be 'asked' or 'omit'"),
        ("endpoint:http://localhost:1/v1", "Add ,model=NAME"),
        ("endpoint:localhost,model=a", "give http"),
        ("endpoint:http://a/v1,model=a,concurency=3", "did you mean concurrency"),
        ("endpoint:http://a/v1,model=a,concurrency=0", "at least 1"),
        ("endpoint:http://a/v1,model=a,input_price=-1", "give a number"),
        ("endpoint:http://a/v1,model=a,longest_side=0", "longest_side is 0; give a whole number of at least 1"),
        ("gpt:x", "expected one of endpoint:PLACE, local:PLACE"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_scoring_judge(text, "cpu")
