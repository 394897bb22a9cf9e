"""What a user names on the command line in one word: `KIND:PLACE[,name=value …]`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nopair.errors import ConfigError

_OPTION: Final = re.compile(r",(?=[a-z_][a-z0-9_]*=)")
_YES_NO: Final = {"true": True, "yes": True, "false": False, "no": False}
_FLAGS: Final = _YES_NO | {"1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Spec:
    """`text` taken apart. `place` is a path, an address or a name; it may hold commas and colons."""

    text: str
    kind: str
    place: str
    options: Mapping[str, str]

    def only(self, *known: str) -> None:
        """Refuse options that nobody reads.

        Raises:
            ConfigError: an option is none of `known`.
        """
        for name in self.options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0)
                hint = f"did you mean {near[0]}?" if near else "it takes none"
                raise ConfigError(f"{self.text}: {self.kind} has no option {name}; {hint}")

    def number(self, name: str, default: int, least: int = 1) -> int:
        """A whole number of at least `least` and below 2^63.

        Raises:
            ConfigError: it is none.
        """
        given = self.options.get(name)
        if given is None:
            return default
        if not re.fullmatch(r"\d{1,19}", given) or not least <= int(given) < 2**63:
            raise ConfigError(f"{self.text}: {name} is {given}; give a whole number of at least {least}, below 2^63")
        return int(given)

    def flag(self, name: str) -> bool:
        """Yes or no; no where the option is not given.

        Raises:
            ConfigError: it is neither.
        """
        given = self.options.get(name, "no")
        if given.lower() not in _FLAGS:
            raise ConfigError(f"{self.text}: {name} is {given}; give one of {', '.join(_FLAGS)}")
        return _FLAGS[given.lower()]

    def amount(self, name: str) -> float | None:
        """A number of at least 0, or None where the option is not given.

        Raises:
            ConfigError: it is no such number.
        """
        given = self.options.get(name)
        if given is None:
            return None
        if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", given):
            raise ConfigError(f"{self.text}: {name} is {given}; give a number such as 2.5")
        return float(given)


def parse_spec(text: str, kinds: Sequence[str]) -> Spec:
    """Take `KIND:PLACE[,name=value …]` apart.

    Raises:
        ConfigError: the kind is none of `kinds`, there is no place, or an option is given twice.
    """
    head, *rest = _OPTION.split(text)
    kind, colon, place = head.partition(":")
    if kind not in kinds or not colon or not place.strip():
        forms = ", ".join(f"{each}:PLACE" for each in kinds)
        raise ConfigError(f"{text!r}: expected one of {forms}, with options after commas, such as ,name=value")
    options: dict[str, str] = {}
    for each in rest:
        name, _, value = each.partition("=")
        if name in options:
            raise ConfigError(f"{text}: {name} is given twice; leave one out")
        options[name] = value
    return Spec(text, kind, place, options)


def as_value(given: str) -> bool | int | float | str:
    """An option's text as the value it looks like, for calls whose arguments only a library knows."""
    if given.lower() in _YES_NO:
        return _YES_NO[given.lower()]
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given
