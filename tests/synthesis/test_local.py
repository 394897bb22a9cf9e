"""The local engine with real vision-language models of tiny random weights, of every family."""

import asyncio
import importlib.util
import io
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from nopair.data.shards import read_records
from nopair.endpoints.messages import Ask, Picture, Reply, yes_probability
from nopair.errors import DataError, RefusedError
from nopair.judges.load import FAMILIES, load_judge
from nopair.synthesis.local import LocalModel
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import synthesize


def _families() -> ModuleType:
    """`families.py` of the judges' tests."""
    path = Path(__file__).parents[1] / "judges" / "families.py"
    spec = importlib.util.spec_from_file_location("nopair_test_synthesis_families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    _families().CASES[request.param].save(folder)
    return folder


def picture(toy: ModuleType, seed: int) -> Picture:
    encoded = io.BytesIO()
    toy.scene(seed).save(encoded, "JPEG")
    return Picture(encoded.getvalue(), "image/jpeg")


def ask(model: LocalModel, question: Ask) -> Reply:
    return asyncio.run(model.chat(question))


def test_a_model_writes_and_tells_its_first_tokens(toy: ModuleType, folder: Path) -> None:
    model = LocalModel("toy", load_judge(folder))
    question = Ask("Answer Yes or No.", (picture(toy, 1), "Is there a circle?"), max_tokens=1, top=400)
    reply = ask(model, question)
    probability = yes_probability(reply.first)
    assert probability is not None
    assert 0 < probability < 1
    assert sum(math.exp(value) for _, value in reply.first) <= 1 + 1e-4
    assert reply.usage.output_tokens == 1
    assert ask(model, question) == reply
    other = ask(model, Ask(question.system, (picture(toy, 2), "Is there a circle?"), max_tokens=1, top=400))
    assert other.first != reply.first, "it looks at the picture"
    assert model.usage.requests == 3


def test_its_first_token_is_the_judges_own_answer(toy: ModuleType, folder: Path) -> None:
    """Greedy writing begins with the likeliest token that is told."""
    model = LocalModel("toy", load_judge(folder))
    reply = ask(model, Ask("s", (picture(toy, 1), "q"), max_tokens=5, top=3))
    assert [value for _, value in reply.first] == sorted((value for _, value in reply.first), reverse=True)
    assert reply.usage.output_tokens <= 5


def test_sampling_follows_the_seed_and_leaves_the_callers_chance_alone(toy: ModuleType, folder: Path) -> None:
    import torch

    model = LocalModel("toy", load_judge(folder))
    before = torch.random.get_rng_state()
    texts = [ask(model, Ask("s", (picture(toy, 1),), max_tokens=8, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_words_without_a_picture_can_be_asked(folder: Path) -> None:
    model = LocalModel("toy", load_judge(folder))
    assert ask(model, Ask("s", ("words alone",), max_tokens=2)).usage.output_tokens >= 1


def test_an_image_token_among_the_words_is_refused(toy: ModuleType, folder: Path) -> None:
    model = LocalModel("toy", load_judge(folder))
    judge = load_judge(folder)
    word: Any = judge.tokenizer.convert_ids_to_tokens(judge.family.marks.image)
    with pytest.raises(RefusedError):
        ask(model, Ask("s", (picture(toy, 1), f"a {word} b")))


def test_a_random_model_verifies_what_a_server_proposed(
    toy: ModuleType, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        toy.scene(seed).save(tmp_path / "photos" / f"{seed}.png")
    judge = {"kind": "local", "path": "tiny:judge", "device": "cpu"}
    changes = {"verify__engine": judge, "verify__threshold": 0.0, "propose__per_image": 2}
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = load_synthesis(toy.recipe(tmp_path, server.url, **changes))
        asyncio.run(synthesize(tmp_path / "photos", tmp_path / "dataset", recipe, Console(file=io.StringIO())))
    records = list(read_records(tmp_path / "dataset"))
    assert records
    assert all(0 <= score.probability <= 1 for record in records for score in record.scores)
    assert {stage.engine for stage in records[0].stages} == {"server", "local"}


def test_what_a_random_model_says_of_a_photo_is_set_aside(
    toy: ModuleType, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    toy.scene(1).save(tmp_path / "photos" / "1.png")
    shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / "2.png")
    judge = {"kind": "local", "path": "tiny:judge", "device": "cpu"}
    changes = {"caption__engine": judge, "caption__max_tokens": 4, "caption__retries": 1}
    recipe = load_synthesis(toy.recipe(tmp_path, "http://127.0.0.1:9/v1", **changes))
    with pytest.raises(DataError, match="caption: answer not of the form asked for 1"):
        asyncio.run(synthesize(tmp_path / "photos", tmp_path / "dataset", recipe, Console(file=io.StringIO())))
