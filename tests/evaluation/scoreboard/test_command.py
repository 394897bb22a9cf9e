"""`nopair evaluate --benchmark` and `nopair compare` as a whole, against a real local judge."""

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nopair.data.images import save_image
from nopair.errors import ConfigError, DataError, EndpointError, OutputError
from nopair.evaluation.scoreboard import command, results
from nopair.evaluation.scoreboard.command import Request, evaluate_benchmark
from nopair.evaluation.scoreboard.comparison import compare_runs


def say(module: ModuleType, marks: dict[str, tuple[int, int]], quality: int = 9) -> Callable[[Any], Any]:
    """A judge that marks by the words of the instruction."""

    def script(asked: Any) -> Any:
        score = next((list(pair) for word, pair in marks.items() if word in asked.text), [quality, quality])
        return module.Say(json.dumps({"score": score, "reasoning": f"<b>said</b> {score}"}))

    return script


def judge_at(server: Any, name: str = "toy", **more: str) -> str:
    return ",".join([f"endpoint:{server.url}", f"model={name}", "attempts=1", *(f"{k}={v}" for k, v in more.items())])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def table(results: dict[str, Any], **wanted: str) -> dict[str, Any]:
    (found,) = [row for row in results["scores"] if all(row[key] == value for key, value in wanted.items())]
    return found


def test_a_whole_evaluation(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = {"hats": (4, 8), "add b": (9, 9), "style c": (1, 1), "改变 d": (0, 5)}
    with endpoint_server.serve(say(endpoint_server, marks)) as server:
        evaluate_benchmark(request_of(judge_at(server)))
        asked = len(server.asked)
        results = read(bench / "run")
        evaluate_benchmark(request_of(judge_at(server)))
        assert len(server.asked) == asked, "what was answered is not asked again"
        assert read(bench / "run") == results
    assert asked == 2 * (4 + 3)
    one = table(results, editor="theirs", language="en", subset="all")
    # SC 4, 9 | 1; PQ 9; O 6, 9 | 3: means within the categories, then of the two.
    assert {name: mean["mean"] for name, mean in one["total"].items()} == {"SC": 3.75, "PQ": 9.0, "O": 5.25}
    other = table(results, editor="others", language="en", subset="all")
    assert other["total"]["O"] == {"mean": 4.5, "count": 2, "missing": 1}
    shared = table(results, editor="theirs", language="en", subset="common")
    assert shared["total"]["O"] == {"mean": 4.5, "count": 2, "missing": 0}
    assert table(results, editor="theirs", language="cn", subset="all")["total"]["O"]["mean"] == 0.0
    assert results["benchmark"]["left_out"][0]["where"] == "edit/00005"
    assert results["scorer"]["rubric"] == "viescore"
    (judge,) = results["judges"]
    assert judge.pop("longest_side") == 1024
    assert judge == {"name": "toy", "version": "toy", "answered_as": ["toy"], "model": "toy", "temperature": 0}
    assert any("1 of 4 edits lack a mark" in warning for warning in results["warnings"])
    assert any("nopair's own words" in warning for warning in results["warnings"])
    differences = {(row["language"], row["measure"]): row for row in results["differences"]}
    assert differences["en", "O"]["difference"] == 0.0
    assert differences["en", "O"]["count"] == 2
    assert [row["why"] for row in results["problems"]] == ["no output: no such output"]
    shown = capsys.readouterr().out
    for words in ("toy · English", "5.25", "by category", "14 questions, 21 images", "mind:"):
        assert words in shown


def test_a_model_that_takes_no_temperature_is_told_of(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    other = {"temperature": "omit", "max_tokens_field": "max_completion_tokens"}
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        evaluate_benchmark(request_of(judge_at(server), editors=("theirs",)))
        asked = len(server.asked)
        evaluate_benchmark(request_of(judge_at(server, **other), editors=("theirs",), output=bench / "run"))
        assert len(server.asked) == 2 * asked, "answers at another temperature are not taken for these"
        assert all("temperature" not in one.json for one in server.asked[asked:])
        evaluate_benchmark(request_of(judge_at(server), editors=("theirs",), output=bench / "other"))
    found = read(bench / "run")
    assert found["judges"][0]["temperature"] is None
    assert any("not asked at temperature 0" in warning for warning in found["warnings"])
    page = (bench / "run" / "report.html").read_text(encoding="utf-8")
    assert "toy, its server&#x27;s own temperature" in page
    assert "toy, temperature 0" in (bench / "other" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no judge in common"):
        compare_runs(str(bench / "run"), str(bench / "other"), as_json=False)


def test_differences_are_drawn_once(
    request_of: Callable[..., Request], endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(results, "compare", lambda first, second, measure: measured.append(measure))
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        evaluate_benchmark(request_of(judge_at(server)))
    assert measured == ["SC", "PQ", "O"] * 2, "in two languages"


def test_pages_are_whole_and_escaped(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    with endpoint_server.serve(say(endpoint_server, {"hats": (4, 8)})) as server:
        evaluate_benchmark(request_of(judge_at(server, "<i>toy</i>")))
    pages = [bench / "run" / "report.html", *sorted((bench / "run" / "gallery").glob("*.html"))]
    assert len(pages) == 1 + 3, "a page for each category and language"
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "<i>toy" not in text
        assert "<b>said" not in text
        _WellFormed().check(text)
        for target in re.findall(r'(?:href|src)="([^"#]+)"', text):
            assert (page.parent / target).is_file(), target
    first = pages[1].read_text(encoding="utf-8")
    assert "add &lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;hats&quot;" in first
    assert "SC 4.00  PQ 9.00  O 6.00" in first
    assert "&lt;b&gt;said&lt;/b&gt; [4, 8]" in first
    assert "no image" in first
    assert "no output" in first
    assert "O by category" in pages[0].read_text(encoding="utf-8")


class _WellFormed(HTMLParser):
    """Every tag that opens closes, in order."""

    VOID = frozenset({"meta", "img", "path", "br"})

    def check(self, text: str) -> None:
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_it_goes_on_where_a_server_failed(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    script = lambda asked: endpoint_server.Fail(401) if asked.number >= 3 else endpoint_server.Say('{"score": [5, 5]}')  # noqa: E731
    with endpoint_server.serve(script) as server, pytest.raises(EndpointError):
        evaluate_benchmark(request_of(judge_at(server, concurrency="1")))
    assert "401" in read(bench / "run")["ended"]["judge toy"]
    with endpoint_server.serve(lambda asked: endpoint_server.Say('{"score": [5, 5]}')) as server:
        evaluate_benchmark(request_of(judge_at(server)))
        assert len(server.asked) == 14 - 3
    assert table(read(bench / "run"), editor="theirs", language="en", subset="all")["total"]["O"]["mean"] == 5.0


def test_the_most_frequent_reasons_for_missing_marks_are_told(
    request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(asked: Any) -> Any:
        if "hats" in asked.text:
            return endpoint_server.Fail(400, message="content policy")
        both = len(asked.images) == 2
        return endpoint_server.Say("well" if both else '{"score": [5, 5]}', finish="length" if both else "stop")

    with endpoint_server.serve(script) as server:
        evaluate_benchmark(request_of(judge_at(server)))
    shown = [line for line in "".join(capsys.readouterr().out).replace("\n", " ").split("mind: ") if "missing" in line]
    told = [" ".join(line.split()) for line in shown if line.startswith("marks by toy are missing")]
    assert told[0].startswith(
        'marks by toy are missing, 5 times: SC: the answer holds no JSON object with a "score", as it was cut short; '
        "give it more with ,tokens=N"
    )
    assert told[1].startswith("marks by toy are missing, 2 times: SC: refused")
    assert len(told) == 2


def test_a_folder_has_one_run_at_a_time(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    """Another is refused before it asks anything, and a dry run is not."""
    refused: list[str] = []

    def script(asked: Any) -> Any:
        if not asked.number:
            request = request_of(judge_at(server))
            evaluate_benchmark(dataclasses.replace(request, dry_run=True))
            try:
                evaluate_benchmark(request)
            except OutputError as error:
                refused.append(str(error))
        return endpoint_server.Say('{"score": [5, 5]}')

    with endpoint_server.serve(script) as server:
        evaluate_benchmark(request_of(judge_at(server, concurrency="1", timeout="300")))
        assert len(server.asked) == 14
        evaluate_benchmark(request_of(judge_at(server)))
        assert len(server.asked) == 14, "what was answered is kept, and the folder is free again"
    assert refused == [f"{bench / 'run' / 'run.json'}: another run is writing here; wait for it, or stop it"]


def test_a_disk_that_is_full_by_the_gallery_costs_no_results(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(command, "write_gallery", full)
    with endpoint_server.serve(say(endpoint_server, {})) as server, pytest.raises(OutputError, match="is full"):
        evaluate_benchmark(request_of(judge_at(server)))
    assert read(bench / "run")["judges"]
    assert "gallery/000.html" in (bench / "run" / "report.html").read_text(encoding="utf-8")


def test_a_server_that_is_gone_costs_the_others_nothing(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a judge's, the first of two, nor an editor's."""
    nobody = "http://127.0.0.1:9/v1,model={},attempts=1"
    editors = (f"endpoint:{nobody.format('painter')}", f"outputs:{bench / 'theirs'}")
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        request = request_of(f"endpoint:{nobody.format('gone')}", judge_at(server), overrides=editors)
        with pytest.raises(EndpointError, match=r"editor painter: .*; judge gone: .*; what there is was written"):
            evaluate_benchmark(request)
        assert len(server.asked) == 8, "the other judge, about the other editor's four outputs"
    found = read(bench / "run")
    assert sorted(found["ended"]) == ["editor painter", "judge gone"]
    assert sum("ended before all was done" in warning for warning in found["warnings"]) == 2
    wanted = {"language": "en", "subset": "all"}
    assert table(found, judge="toy", editor="theirs", **wanted)["total"]["O"] == {"mean": 9.0, "count": 3, "missing": 0}
    assert table(found, judge="toy", editor="painter", **wanted)["total"]["O"]["missing"] == 3
    assert table(found, judge="gone", editor="theirs", **wanted)["total"]["O"]["missing"] == 3
    why = {(row["judge"], row["editor"], row["why"].partition(":")[0]): row["why"] for row in found["problems"]}
    assert "no usable answer" in why["toy", "painter", "no output"]
    assert "no usable answer" in why["gone", "theirs", "SC"]
    assert "ended before all was done" in (bench / "run" / "report.html").read_text(encoding="utf-8")
    assert "9.00" in capsys.readouterr().out


def test_two_judges_and_our_editor_with_its_teacher(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    ours = "nopair:tiny:editor,steps=1,name=ours,judge=/models/InternVL3-14B"
    lenient = {"hats": (10, 10), "add b": (8, 8), "style c": (4, 4), "改变 d": (2, 2)}
    strict = {"hats": (8, 8), "add b": (6, 6), "style c": (2, 2), "改变 d": (0, 0)}
    with (
        endpoint_server.serve(say(endpoint_server, lenient)) as one,
        endpoint_server.serve(say(endpoint_server, strict)) as two,
    ):
        judges = (judge_at(one, "internvl3-78b"), judge_at(two, "gpt-5"))
        evaluate_benchmark(request_of(*judges, overrides=(ours,)))
    results = read(bench / "run")
    (agreed,) = [row for row in results["agreement"] if row["measure"] == "SC"]
    assert (agreed["count"], agreed["bias"], agreed["distance"]) == (4, -2.0, 2.0)
    assert agreed["rank"] == pytest.approx(1.0)
    kin = [warning for warning in results["warnings"] if "same family" in warning]
    assert len(kin) == 1
    assert "ours was trained under /models/InternVL3-14B and is marked by internvl3-78b" in kin[0]
    assert results["editors"][0]["about"]["steps"] == 1
    assert len(list((bench / "run" / "outputs" / "ours").rglob("*.png"))) == 4
    named = next(row for row in results["judges"] if row["name"] == "gpt-5")
    assert named["answered_as"] == ["gpt-5"]
    with pytest.raises(OutputError, match="with another steps"):
        evaluate_benchmark(request_of(*judges, overrides=(ours.replace("steps=1", "steps=2"),)))


def test_a_dry_run_asks_nothing(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    editors = ("nopair:tiny:editor,name=ours", f"outputs:{bench / 'others'}")
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        judge = judge_at(server, input_price="1", output_price="2")
        evaluate_benchmark(request_of(judge, overrides=editors, dry_run=True))
        assert not server.asked
    shown = " ".join(capsys.readouterr().out.split())
    assert "ours: 4 of 4 edits to make others: 3 of 4 outputs are there" in shown
    assert "toy: 14 questions" in shown, "two about each output of each editor, those not made yet included"
    assert "at most" not in shown
    assert "1024 tokens for an image are a guess" in shown
    assert "USD" in shown
    assert not list((bench / "run").rglob("*.*")), "nothing is begun, so another scorer may be named"


def test_costs_of_editors_and_judges_are_told_before_and_kept_after(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[str] = []
    drawn = (bench / "a.png").read_bytes()

    def script(asked: Any) -> Any:
        if not asked.number:
            plans.append(" ".join(capsys.readouterr().out.split()))
        if asked.path.endswith("/images/edits"):
            return endpoint_server.Draw(drawn, usage=(50, 200))
        return endpoint_server.Say('{"score": [5, 5]}') if asked.number < 10 else endpoint_server.Fail(401)

    def of(found: dict[str, Any], who: str) -> tuple[int, ...]:
        return tuple(found["spending"][who]["usage"][name] for name in ("requests", "input_tokens", "output_tokens"))

    with endpoint_server.serve(script) as server:
        priced = f"endpoint:{server.url},model={{}},attempts=1,concurrency=1,input_price=1000,output_price=2000"
        request = request_of(priced.format("toy"), overrides=(priced.format("painter") + ",image_tokens=100",))
        evaluate_benchmark(dataclasses.replace(request, dry_run=True))
        assert not server.asked
        told = " ".join(capsys.readouterr().out.split())
        with pytest.raises(EndpointError, match=r"judge toy: .*401"):
            evaluate_benchmark(request)
        first = read(bench / "run")
        server.script = lambda asked: endpoint_server.Say('{"score": [5, 5]}', usage=None)
        evaluate_benchmark(request)
    assert told == plans[0], "all of the plan before anything is paid"
    assert re.search(
        r"painter: 4 of 4 edits to make; about 4 answers, 4\d\d tokens sent, 400 received \(1\.2\d USD\)", told
    )
    assert re.search(r"toy: 8 questions, 12 images; about .* USD\)", told)
    assert of(first, "editor painter") == (4, 200, 800)
    assert first["spending"]["editor painter"]["costs"] == {"USD": pytest.approx(1.8)}
    assert of(first, "judge toy") == (6, 600, 60), "what was paid before it ended"
    second = read(bench / "run")
    assert of(second, "editor painter") == (4, 200, 800), "of all runs into this folder"
    assert of(second, "judge toy") == (8, 600, 60)
    assert second["spending"]["judge toy"]["usage"]["uncounted"] == 2
    page = (bench / "run" / "report.html").read_text(encoding="utf-8")
    assert "<td>1.80 USD</td>" in page
    assert "<td>at least 0.72 USD</td>" in page


def test_a_key_that_is_not_set_is_told_before_anything_is_paid(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    drawn = endpoint_server.Draw((bench / "a.png").read_bytes())
    with endpoint_server.serve(lambda asked: drawn) as server:
        painter = f"endpoint:{server.url},model=painter"
        request = request_of(judge_at(server, key="JUDGE_KEY"), overrides=(painter,))
        evaluate_benchmark(dataclasses.replace(request, dry_run=True))
        with pytest.raises(ConfigError, match="export JUDGE_KEY"):
            evaluate_benchmark(request)
        assert not server.asked


def test_another_edit_under_an_old_name_is_made_and_marked_anew(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = "nopair:tiny:editor,steps=1,name=ours"
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        request = request_of(judge_at(server), overrides=(ours,))
        evaluate_benchmark(request)
        asked, file = len(server.asked), bench / "edits.jsonl"
        file.write_text(file.read_text(encoding="utf-8").replace("style c", "style other"), encoding="utf-8")
        save_image(torch.full((3, 16, 24), 0.9), bench / "b.png")
        capsys.readouterr()
        evaluate_benchmark(dataclasses.replace(request, dry_run=True))
        assert "ours: 2 of 4 edits to make, 2 anew" in capsys.readouterr().out
        assert len(server.asked) == asked
        evaluate_benchmark(request)
        assert "ours: 2 of 4 edits to make, 2 anew" in capsys.readouterr().out
        assert {place for one in server.asked[asked:] for place in _words(one.text)} == {"add b", "style other"}


def _words(text: str) -> list[str]:
    return [words for words in ("hats", "add b", "style c", "style other", "改变 d") if words in text]


def test_two_runs_compare(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, marks in (("one", {"hats": (4, 4)}), ("two", {"hats": (6, 6)})):
        with endpoint_server.serve(say(endpoint_server, marks)) as server:
            evaluate_benchmark(
                request_of(judge_at(server), editors=("theirs",), output=bench / name, languages=("en",))
            )
    capsys.readouterr()
    compare_runs(str(bench / "one"), str(bench / "two"), as_json=True)
    rows = json.loads(capsys.readouterr().out)
    semantic = next(row for row in rows if row["measure"] == "SC")
    assert (semantic["count"], semantic["difference"]) == (3, 0.5)  # 2 of one of two edits of one of two categories
    assert semantic["low"] == 0.0
    assert semantic["high"] == 1.0
    compare_runs(str(bench / "one"), str(bench / "two"), as_json=False)
    assert "+0.50" in capsys.readouterr().out


def test_what_does_not_compare(bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        evaluate_benchmark(request_of(judge_at(server), output=bench / "both"))
        evaluate_benchmark(request_of(judge_at(server, "other"), editors=("theirs",), output=bench / "other"))
        imgedit = request_of(judge_at(server), editors=("theirs",), output=bench / "imgedit", scorer="imgedit")
        evaluate_benchmark(imgedit)
        save_image(torch.full((3, 16, 24), 0.9), bench / "b.png")
        evaluate_benchmark(request_of(judge_at(server), editors=("theirs",), output=bench / "changed"))
    one = f"{bench / 'both'}:theirs"
    compare_runs(one, f"{bench / 'both'}:others", as_json=True)
    for first, second, error, why in (
        (str(bench / "both"), one, ConfigError, "holds several editors; give .*:EDITOR, one of theirs, others"),
        (one, f"{bench / 'both'}:nobody", ConfigError, "has no editor nobody"),
        (one, str(bench / "other"), ConfigError, "no judge in common"),
        (one, str(bench / "imgedit"), ConfigError, "another scorer"),
        (one, str(bench / "changed"), ConfigError, r"different edits under the same name \(1, the first: add/en/b\)"),
        (one, str(bench / "nowhere"), DataError, "name the folder of an evaluation"),
    ):
        with pytest.raises(error, match=why):
            compare_runs(first, second, as_json=False)


def test_runs_without_an_edit_in_common_do_not_compare(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        for language in ("en", "cn"):
            request = request_of(judge_at(server), editors=("theirs",), languages=(language,), output=bench / language)
            evaluate_benchmark(request)
    with pytest.raises(ConfigError, match=r"no edit in common .*\(3 edits in en; 1 edits in cn\)"):
        compare_runs(str(bench / "en"), str(bench / "cn"), as_json=False)


def test_files_of_a_run_that_hold_something_else(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        request = request_of(judge_at(server), editors=("theirs",))
        evaluate_benchmark(request)
        for text in ("[]", "3", "{", '{"benchmark": 1}', '{"benchmark": {"name": "a"}, "scorer": [], "judges": []}'):
            (bench / "run" / "results.json").write_text(text)
            with pytest.raises(DataError, match=r"results\.json: holds no results \(.*run the evaluation again"):
                compare_runs(str(bench / "run"), str(bench / "run"), as_json=False)
        for file in ("run.json", "outputs/theirs/editor.json"):
            for text in ("[]", '"a"', "{"):
                before = (bench / "run" / file).read_text()
                (bench / "run" / file).write_text(text)
                with pytest.raises(OutputError, match=Path(file).name):
                    evaluate_benchmark(request)
                (bench / "run" / file).write_text(before)


def test_what_is_asked_for_has_to_fit(
    bench: Path, request_of: Callable[..., Request], endpoint_server: ModuleType
) -> None:
    judge = "endpoint:http://127.0.0.1:9/v1,model=a"
    for wrong, why in (
        (request_of(), "needs a judge"),
        (request_of(judge, features=("dino:x",)), "leave out --features"),
        (request_of(judge, judge), "two judges are called a"),
        (request_of(judge, editors=("theirs", "theirs")), "two editors are called theirs"),
        (request_of(scorer="similarity"), "needs --features"),
        (request_of(judge, scorer="similarity"), "asks no judge"),
    ):
        with pytest.raises(ConfigError, match=why):
            evaluate_benchmark(wrong)
    with endpoint_server.serve(say(endpoint_server, {})) as server:
        evaluate_benchmark(request_of(judge_at(server), editors=("theirs",)))
        with pytest.raises(OutputError, match="holds an evaluation with another scorer"):
            evaluate_benchmark(request_of(judge_at(server), editors=("theirs",), scorer="imgedit"))
