"""Recipes of synthesis, and prompts that never change under their version."""

import hashlib
import importlib.resources

import pytest

from nopair.errors import ConfigError
from nopair.settings import dump, parse
from nopair.synthesis import stages
from nopair.synthesis.recipe import EDITS, ServerEngine, SynthesisRecipe, load_synthesis
from nopair.synthesis.wording import prompt_text

SHIPPED = {
    "caption-1": "e6ce107539b343dc",
    "fill-1": "fa0277be0bf42b99",
    "free-form-1": "efc12607b6f92a8f",
    "propose-1": "9f54af66623cdfe7",
    "verify-applicable-1": "b53032cdab93c561",
    "verify-object-1": "8661b99a1448030e",
    "verify-specific-1": "1418a295226e6ae4",
}
"""Prompts by version, with the beginning of their SHA-256. A new wording is a new line, never a changed one."""


def test_a_prompt_never_changes_under_its_version() -> None:
    files = [file for file in importlib.resources.files("nopair.synthesis.prompts").iterdir() if ".txt" in file.name]
    found = {file.name[:-4]: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}
    assert found == SHIPPED
    used = {stages.CAPTION_PROMPT, stages.PROPOSE_PROMPT, stages.FREE_FORM_PROMPT, *stages.QUESTIONS.values()}
    assert used <= SHIPPED.keys()


def test_every_kind_of_edit_is_explained() -> None:
    text = prompt_text(stages.PROPOSE_PROMPT).text
    assert not [name for name in EDITS if f"- {name}: " not in text]


def test_the_default_names_the_papers_model_and_one_with_eyes() -> None:
    recipe = load_synthesis("default")
    engines = recipe.caption.engine, recipe.propose.engine, recipe.verify.engine
    models = [engine.model for engine in engines if isinstance(engine, ServerEngine)]
    assert models[1] == "Qwen/Qwen2.5-32B-Instruct"
    assert "VL" in models[0]
    assert models[0] == models[2]
    assert recipe.propose.categories == EDITS
    assert parse(SynthesisRecipe, dump(recipe)) == recipe


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("verify.treshold=1", ["verify.threshold"]),
        ("verify.threshold=2", ["verify.threshold is 2", "at most 1"]),
        ("caption.engine.kind=cloud", ["caption.engine.kind is 'cloud'", "'server', 'local'"]),
        ("caption.engine.kind=local", ["caption.engine.path is missing"]),
        ("caption.engine={path: x}", ["kind: server or kind: local"]),
        ("caption.engine.modle=x", ["caption.engine.model"]),
        ("caption.engine.url=http://me:secret@host/v1", ["caption.engine.url", "key_variable"]),
        ("propose.categories=[nothing]", ["propose", "'nothing'"]),
        ("propose.categories=[add, add]", ["propose", "one twice"]),
        ("propose.per_image=11", ["propose", "11"]),
    ],
)
def test_a_wrong_value_says_key_and_what_was_expected(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as wrong:
        load_synthesis("default", [override])
    for part in parts:
        assert part in str(wrong.value)
    assert "secret" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="default"):
        load_synthesis("defualt")
