"""Rubrics: ours are whole, and the official files are read where a user has them."""

import json
from pathlib import Path

import pytest

from nopair.errors import ConfigError
from nopair.evaluation.scorers.rubric import official_imgedit, official_viescore, ours
from nopair.evaluation.scorers.rules import RULES

TYPES = ("add", "remove", "replace", "adjust", "background", "style", "action", "extract", "compose")
OFFICIAL = '''# made by a script
_context_no_delimit = """CONTEXT { "score" : [...] }"""
_prompts_0shot_two_image_edit_rule = "RULE"
_prompts_0shot_tie_rule_SC = """do <instruction>"""
_prompts_0shot_rule_PQ = "QUALITY"
_other, x = 1, open("/should/not/run")
'''


@pytest.mark.parametrize("name", ["viescore", "imgedit"])
def test_ours_are_whole(name: str) -> None:
    rubric = ours(name)
    assert (rubric.name, rubric.version) == (name, "v1")
    assert (rubric.low, rubric.high) == (RULES[name].low, RULES[name].high)
    for template in rubric.questions:
        assert ("source" in template.shows) == ("{instruction}" in template.prompt)
        assert f"{rubric.low}" in template.prompt
        assert f"{rubric.high}" in template.prompt
        assert '"score": [' + ", ".join(["first", "second", "third"][: template.scores]) in template.prompt


def test_every_type_of_imgedit_has_criteria_of_its_own() -> None:
    rubric = ours("imgedit")
    prompts = {kind: rubric.prompt(rubric.questions[0], kind, "use {criteria} here") for kind in TYPES}
    assert all(prompt is not None and prompt.count("use {criteria} here") == 1 for prompt in prompts.values())
    assert len(set(prompts.values())) == len(TYPES) == len(rubric.criteria)
    assert rubric.prompt(rubric.questions[0], "dance", "x") is None
    assert all(f"\n{number}. " in f"\n{words}" for words in rubric.criteria.values() for number in (1, 2, 3))


def test_official_viescore_texts_are_read_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "vie_prompts.py"
    path.write_text(OFFICIAL)
    rubric = official_viescore(path)
    semantic, quality = rubric.questions
    assert rubric.prompt(semantic, "any", "dye it") == 'CONTEXT { "score" : [...] }\nRULE\ndo dye it'
    assert rubric.prompt(quality, "any", "dye it") == 'CONTEXT { "score" : [...] }\nQUALITY'
    path.write_text(OFFICIAL + "# changed\n")
    assert official_viescore(path).version != rubric.version
    for text, why in ((OFFICIAL.replace("rule_PQ", "rule_QP"), "no text _prompts_0shot_rule_PQ"), ("=", "not Python")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why):
            official_viescore(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        official_viescore(tmp_path / "no.py")


def test_official_imgedit_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"Add": "Was <edit_prompt> done?", "style": "Is it <edit_prompt>?"}))
    rubric = official_imgedit(path)
    assert rubric.prompt(rubric.questions[0], "add", "dye {it}") == "Was dye {it} done?"
    assert rubric.prompt(rubric.questions[0], "remove", "x") is None
    assert rubric.questions[0].reply == "lines"
    for text in ("[]", "{}", '{"add": 1}', "{"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="prompts file"):
            official_imgedit(path)
