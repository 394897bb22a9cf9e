"""Our editor, a server's, and outputs made elsewhere."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from nopair.data.images import load_image, save_image
from nopair.errors import ConfigError, DataError, EndpointError, ModelError, OutputError, PixelsError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors import ours
from nopair.evaluation.editors.load import load_contestant
from nopair.weights import resolve

Items = Callable[..., list[Item]]
QUICK = "attempts=1,timeout=5"


def jpeg(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_ours_edits_images_of_any_size(make_items: Items, tmp_path: Path) -> None:
    items = make_items(2, 40, 60)
    items[1].source.write_bytes(b"no image")
    editor = load_contestant("nopair:tiny:editor,steps=1,seed=3,batch=2", "cpu")
    assert editor.name == "tiny:editor-1-steps"
    problems: list[tuple[str, str | None]] = []
    editor.make(items, tmp_path / "out", lambda item, problem: problems.append((item.key, problem)))
    assert sorted(key for key, problem in problems if problem is None) == ["0"]
    assert "not a readable" in str(dict(problems)["1"])
    assert load_image(editor.output(items[0], tmp_path / "out")).shape == (3, 40, 60)
    assert editor.about["steps"] == 1
    with pytest.raises(ModelError):
        load_contestant(f"nopair:{tmp_path / 'no'}", "cpu")
    dataclasses.replace(editor, opened=pytest.fail).make([], tmp_path / "out", pytest.fail)


def test_a_full_disk_ends_ours_and_broken_pixels_do_not(
    make_items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []

    def failing(error: OutputError) -> None:
        monkeypatch.setattr(ours, "run_jobs", lambda editor, jobs, batch: ((job, error) for job in jobs))
        load_contestant("nopair:tiny:editor", "cpu").make(
            make_items(2), tmp_path / "out", lambda item, problem: told.append(problem)
        )

    with pytest.raises(OutputError, match="the disk is full"):
        failing(OutputError("the disk is full"))
    assert not told
    failing(PixelsError("no numbers"))
    assert told == ["no numbers"] * 2


def test_trained_editors_are_called_after_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training calls the folder of each of them `editor`."""
    for place in ("mine/editor", "theirs/editor", "kept"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(resolve("tiny:editor"))

    def name(text: str) -> str:
        return load_contestant(text, "cpu").name

    assert name(f"nopair:{tmp_path}/mine/editor") == "mine"
    assert name(f"nopair:{tmp_path}/theirs/editor/,steps=1") == "theirs-1-steps"
    assert name(f"nopair:{tmp_path}/theirs/editor,name=editor") == "editor"
    assert name(f"nopair:{tmp_path}/kept") == "kept"
    assert name("nopair:tiny:editor") == "tiny:editor"
    monkeypatch.chdir(tmp_path / "mine")
    assert name("nopair:editor") == "mine"


def test_ours_computes_as_it_is_stored_on_a_gpu(
    make_items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And results that were begun on a CPU, or in float32, go on: nothing is told of them that was not told before."""

    def opened(text: str) -> tuple[torch.dtype, object]:
        editor: Any = load_contestant(text, "cpu")
        return editor.opened().backbone.transformer.dtype, editor.about.get("dtype")

    assert opened("nopair:tiny:editor") == (torch.float32, None)
    assert opened("nopair:tiny:editor,dtype=bf16") == (torch.bfloat16, "bf16")
    monkeypatch.setattr(ours, "choose_device", lambda _name: torch.device("meta"))
    assert opened("nopair:tiny:editor") == opened("nopair:tiny:editor,dtype=auto") == (torch.float16, "fp16")
    assert opened("nopair:tiny:editor,dtype=fp32") == (torch.float32, None)
    with pytest.raises(ConfigError, match="dtype 'int8' is unknown; choose auto, bf16, fp16, fp32"):
        load_contestant("nopair:tiny:editor,dtype=int8", "cpu")


def test_a_server_edits(make_items: Items, endpoint_server: ModuleType, tmp_path: Path) -> None:
    items = make_items(4)
    refused = {"add 1 hats": endpoint_server.Fail(400, message="content policy"), "add 2 hats": None}

    def script(asked: Any) -> Any:
        for words, answer in refused.items():
            if words.encode() in asked.body:
                return answer or endpoint_server.Draw(b"no image")
        return endpoint_server.Draw(jpeg((0, 0, 255)))

    problems: dict[str, str | None] = {}
    with endpoint_server.serve(script) as server:
        text = f"endpoint:{server.url},model=org/toy-edit,{QUICK},num_inference_steps=4,size=20x10"
        editor = load_contestant(text, "cpu")
        editor.make(items, tmp_path / "out", lambda item, problem: problems.update({item.key: problem}))
    assert editor.name == "toy-edit"
    assert problems["0"] is problems["3"] is None
    assert "content policy" in str(problems["1"])
    assert "the server's answer is no image" in str(problems["2"])
    assert load_image(editor.output(items[0], tmp_path / "out"))[2].mean() > 0.9
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["0.png", "3.png", "usage.jsonl"]
    body = server.asked[0].body
    assert server.asked[0].path == "/v1/images/edits"
    for field in (b'name="num_inference_steps"\r\n\r\n4', b'name="size"\r\n\r\n20x10', b'name="prompt"', b"\x89PNG"):
        assert field in body


def test_a_server_that_sends_links_is_asked_for_images(
    make_items: Items, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    link = endpoint_server.Raw(b'{"created": 0, "data": [{"url": "http://127.0.0.1:9/a.png"}]}')

    def script(asked: Any) -> Any:
        asked_for = b'name="response_format"\r\n\r\nb64_json' in asked.body
        return endpoint_server.Draw(jpeg((0, 0, 255))) if asked_for else link

    problems: list[str | None] = []
    with endpoint_server.serve(script) as server:
        text = f"endpoint:{server.url},model=a,{QUICK}"
        with pytest.raises(EndpointError, match="a link") as told:
            load_contestant(text, "cpu").make(make_items(1), tmp_path / "out", lambda item, problem: None)
        (advice,) = [word for word in str(told.value).split() if word.startswith(",")]
        editor = load_contestant(text + advice, "cpu")
        editor.make(make_items(1), tmp_path / "out", lambda item, problem: problems.append(problem))
    assert problems == [None]


def test_a_server_is_sent_photos_of_the_size_that_was_asked_for(
    make_items: Items, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    """And outputs of photos at two sizes are not one editor's."""
    (item,) = make_items(1, 40, 80)
    about, sizes = [], []
    with endpoint_server.serve(lambda asked: endpoint_server.Draw(jpeg((0, 0, 255)))) as server:
        for more in ("", ",longest_side=100", ",longest_side=20"):
            editor = load_contestant(f"endpoint:{server.url},model=a,{QUICK}{more}", "cpu")
            editor.make([item], tmp_path / "out", lambda item, problem: None)
            about.append(editor.about.get("longest_side"))
            body = server.asked[-1].body
            sizes.append(Image.open(io.BytesIO(body[body.index(b"\x89PNG") :])).size)
    assert sizes == [(80, 40), (80, 40), (20, 10)]
    assert about == [None, 100, 20]


def test_fields_of_chat_models_are_none_of_editors() -> None:
    with pytest.raises(ConfigError, match="has no option temperature"):
        load_contestant("endpoint:http://127.0.0.1:9/v1,model=a,temperature=omit", "cpu")


def test_a_server_that_is_not_there_ends_it(make_items: Items, tmp_path: Path) -> None:
    editor = load_contestant(f"endpoint:http://127.0.0.1:9/v1,model=a,{QUICK}", "cpu")
    with pytest.raises(EndpointError):
        editor.make(make_items(2), tmp_path / "out", lambda item, problem: None)


def test_outputs_made_elsewhere(make_items: Items, tmp_path: Path) -> None:
    items = make_items(2)
    theirs = tmp_path / "step1x"
    (theirs / "fullset/add/en").mkdir(parents=True)
    save_image(torch.zeros(3, 4, 4), theirs / "fullset/add/en/0.jpg")
    editor = load_contestant(f"outputs:{theirs}", "cpu")
    problems: list[str | None] = []
    assert editor.name == "step1x"
    assert editor.output(items[0], tmp_path) == theirs / "fullset/add/en/0.jpg"
    editor.make(items[1:], tmp_path, lambda item, problem: problems.append(problem))
    assert "no such output" in str(problems[0])
    with pytest.raises(DataError, match="no such folder of outputs"):
        load_contestant(f"outputs:{tmp_path / 'no'}", "cpu")


def test_any_seed_of_the_command_line_is_taken() -> None:
    assert load_contestant(f"nopair:tiny:editor,seed={2**63 - 1}", "cpu").about["seed"] == 2**63 - 1
    with pytest.raises(ConfigError, match=r"at least 0, below 2\^63"):
        load_contestant(f"nopair:tiny:editor,seed={2**63}", "cpu")
