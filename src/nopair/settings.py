"""Settings as frozen values, read from YAML and checked to the last key: what recipes of every kind have in common.

A recipe's class is a `Section` of fields and further sections, each field with a description. `parse` reads YAML text,
applies dotted overrides (`npedit.lr=1e-4`) and returns such a value, or raises `ConfigError` with one line that names
the key, the value and what was expected.

Fields are strict (a number is never read from text) and unknown keys are errors. YAML scalars are read as in YAML 1.2:
`1e-4` is a number, `no` is text.
"""

import difflib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from nopair.errors import ConfigError

Words = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What every generator of random numbers takes."""


class Section(BaseModel):
    """What every part of a recipe has in common: frozen, strict, finite numbers only, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def path_override(key: str, path: Path) -> str:
    """`key=path` for `load_recipe`, whatever characters the path holds.

    Raises:
        ConfigError: bytes that are no UTF-8, which no recipe can hold.
    """
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{key}: the path {text!r} is not UTF-8 text; choose another name") from None
    plain = (c if c.isascii() and c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'{key}="{"".join(plain)}"'


def parse_tree(source: str | bytes, where: str) -> dict[Any, Any]:
    """The keys and values of a recipe, of whatever kind, unchecked. Raises ConfigError if it is not YAML with keys."""
    tree = _parse_yaml(source, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected keys with values, such as `name: demo`, found {_brief(tree)}")
    return tree


def shipped_names(package: str) -> tuple[str, ...]:
    """Names of the recipes that ship in a package, sorted."""
    files = importlib.resources.files(package).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load(kind: type[S], package: str, name_or_path: str | Path, overrides: Sequence[str] = ()) -> S:
    """The recipe of a name shipped in `package`, or of a YAML file (what ends in .yaml or .yml, or has a `/`).

    `overrides` are `dotted.key=value` with YAML values, applied in order. Raises ConfigError.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        try:
            source = Path(name_or_path).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"recipe {text!r} cannot be read: {reason}") from error
        return parse(kind, source, overrides, where=text)
    names = shipped_names(package)
    if text not in names:
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.0) or ["none"]
        raise ConfigError(f"there is no recipe {text!r}; nearest: {', '.join(near)}; or give the path of a .yaml file")
    return parse(kind, (importlib.resources.files(package) / f"{text}.yaml").read_bytes(), overrides, text)


def parse(kind: type[S], source: str | bytes, overrides: Sequence[str] = (), where: str = "recipe") -> S:
    """Settings from YAML text; `where` names it in errors. `parse(kind, dump(value)) == value`. Raises ConfigError.

    The text is complete by itself; overrides change single keys of it.
    """
    tree = parse_tree(source, where)
    value = _validate(kind, tree, where)
    if not overrides:
        return value
    tree = value.model_dump(mode="json")
    for override in overrides:
        _apply(kind, tree, override)
    return _validate(kind, tree, where)


def _validate(kind: type[S], tree: dict[Any, Any], where: str) -> S:
    try:
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(kind, error)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds a value that is neither text, number, list nor section ({error})") from error


def dump(settings: Section) -> str:
    """The settings, every key spelled out, as YAML."""
    tree = settings.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# Reading and writing YAML ---------------------------------------------------------------------------------------------

_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either YAML version would read as something else."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse_yaml(source: str | bytes, where: str) -> Any:
    try:
        return yaml.load(source, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}: not valid YAML{place}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {_brief(str(error))}") from error


# Overrides and errors -------------------------------------------------------------------------------------------------


def _apply(root: type[Section], tree: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {_brief(override)}: expected key=value, such as npedit.lr=1e-4")
    value = _parse_yaml(text, f"override {_brief(override)}")
    *sections, last = key.split(".")
    known = dict(_fields(root))
    _require_no_list(known, sections, override)
    parent = known.get(".".join(sections))
    if key not in known and (parent is None or not _holds_any_key(parent)):
        raise ConfigError(f"override {_brief(override)}: unknown key {key}{_nearest(root, key)}")
    for number, section in enumerate(sections):
        if tree.get(section) is None:  # left out by the recipe, or by an override of the section around it
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            place = ".".join(sections[: number + 1])
            raise ConfigError(f"override {_brief(override)}: {place} is {_brief(tree)} and has no keys of its own")
    if parent is not None and parent.discriminator == last and value != tree.get(last, value):
        tree.clear()  # a section of another kind has other keys
    tree[last] = value


def _holds_any_key(field: FieldInfo) -> bool:
    """Whether it is a mapping, or may be one."""
    return any(get_origin(one) is Mapping for one in (field.annotation, *get_args(field.annotation)))


def _require_no_list(known: Mapping[str, FieldInfo], sections: Sequence[str], override: str) -> None:
    """A list is replaced by an override, never changed within."""
    for place in accumulate(sections, "{}.{}".format):
        if place in known and get_origin(known[place].annotation) is tuple:
            raise ConfigError(f"override {_brief(override)}: {place} is a list; give all of it, as {place}=[...]")


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field by its dotted key; those of the sections in a list have an N where a number belongs."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        within = f"{prefix}{name}.N." if get_origin(field.annotation) is tuple else f"{prefix}{name}."
        for inner in (field.annotation, *get_args(field.annotation)):  # one section, or those of a union
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _fields(inner, within)


def _nearest(root: type[Section], key: str) -> str:
    """`; did you mean ...?` with the keys that are most like `key`, as a whole or in their last part."""
    section, _, last = key.rpartition(".")
    initials = "".join(word[:1] for word in last.split("_"))  # learning_rate is lr

    def likeness(candidate: str) -> float:
        name = candidate.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        part = 1.0 if name == initials else difflib.SequenceMatcher(None, last, name).ratio()
        return max(whole, 0.9 * part + 0.1 * whole)

    known = dict(_fields(root))
    if key in known:
        kind = f"{section}.{known[section].discriminator}"
        return f"; it belongs to another {kind}, so set {kind} first"
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last] if not section else []
    return f"; did you mean {' or '.join(same) or max(known, key=likeness)}?"


def _explain(root: type[Section], error: ValidationError) -> str:
    """One line for the first problem pydantic found: key, value, what was expected."""
    problems: Any = error.errors(include_url=False)
    # An unknown key explains a missing one, so it is told first.
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    kind = problem["type"]
    known = dict(_fields(root))
    key = _dotted(problem["loc"], known)
    if kind == "union_tag_invalid":
        tag, expected = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        line = f"{key}.{known[key].discriminator} is {tag!r}, expected {expected}{_meaning(known, key)}"
    elif kind == "extra_forbidden":
        line = f"unknown key {key}{_nearest(root, key)}"
    elif kind == "value_error":
        line = f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    elif kind == "missing":
        line = f"{key} is missing{_meaning(known, key)}"
    else:
        expected = _expected(known.get(key), problem)
        line = f"{key} is {_brief(problem['input'])}, expected {expected}{_meaning(known, key)}"
    more = len(problems) - 1
    return line.replace("\n", " ") + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _dotted(place: Sequence[str | int], known: Mapping[str, FieldInfo]) -> str:
    """Pydantic's place of a problem as a key. After a union's key it has the tag of the member, which is no key."""
    parts, path = iter(place), list[str]()
    for part in parts:
        path.append(str(part))
        field = known.get(".".join(path))
        if field is not None and field.discriminator is not None:
            next(parts, None)
    return ".".join(path)


def _expected(field: FieldInfo | None, problem: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "union_tag_not_found" and field is not None:
        return _kinds(field)
    plain = {
        "model_type": "a section with keys of its own",
        "dict_type": "names with values",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text, in quotes if it looks like a number",
        "string_too_short": "some text",
        "tuple_type": "a list",
        "too_short": f"at least {context.get('min_length')} values",
        "too_long": f"at most {context.get('max_length')} values",
        "greater_than": f"more than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "literal_error": str(context.get("expected")),
    }
    return plain.get(kind, str(problem["msg"]))


def _kinds(field: FieldInfo) -> str:
    """`a section with source: world or source: photos`, of a field that is one of several sections."""
    tag = field.discriminator
    assert isinstance(tag, str), "only a union with a tag lacks one"
    kinds = [value for member in get_args(field.annotation) for value in get_args(member.model_fields[tag].annotation)]
    return "a section with " + " or ".join(f"{tag}: {kind}" for kind in kinds)


def _meaning(known: Mapping[str, FieldInfo], key: str) -> str:
    """` (description)` of the field that `key` is, or is inside of."""
    while key and key not in known:
        key = key.rpartition(".")[0]
    return f" ({known[key].description})" if key else ""


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
