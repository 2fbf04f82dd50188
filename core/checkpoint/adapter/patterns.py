"""Regular expressions of an adapter's options, each with the number of the modules that it matches.

PEFT matches them with Python's `re`, which tries one way after the other: a short pattern can take
longer than anybody waits. Such patterns are refused, by what they repeat and how often they branch.
"""

import re
import time
from collections.abc import Callable, Mapping
from math import comb
from typing import NamedTuple, TypeAlias

from edgelm.errors import BadCheckpoint

# The error for a pattern, given what was expected of it.
Wrong: TypeAlias = Callable[[str, str], BadCheckpoint]

_MAX_CHARACTERS = 200  # of a pattern
_LONGEST_NAME = 100  # characters of a module's name; published models have up to 60
_MAX_STEPS = 2e7  # of one match
_MAX_SECONDS = 5.0  # of computing, for all modules
# Matching a repeated group can take time exponential in the length of a name.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT, _OPTIONAL = re.compile(r"[*+{]"), re.compile(r"(?<!\()\?")
_GROUP = re.compile(r"\([^()]*\)")  # without groups in it


class ModulePatterns:
    """Patterns in order, each with a value.

    Args:
        values: value by pattern.
        wrong: makes the error for a pattern.

    Raises:
        BadCheckpoint: not a regular expression, or one that could take too long.
    """

    def __init__(self, values: Mapping[str, float], wrong: Wrong) -> None:
        self._seconds = 0.0
        self._wrong = wrong
        self._patterns = [
            _Pattern(text, _compiled(text, wrong), value) for text, value in values.items()
        ]

    def value(self, module: str, default: float) -> float:
        """The value of the first pattern that a module's name ends in, as PEFT matches them.

        Raises:
            BadCheckpoint: the patterns take too long.
        """
        if self._patterns and len(module) > _LONGEST_NAME:
            raise self._wrong(
                self._patterns[0].text, f"modules of at most {_LONGEST_NAME} characters"
            )
        for pattern in self._patterns:
            if self._matches(pattern, module):
                return pattern.value
        return default

    def _matches(self, pattern: "_Pattern", module: str) -> bool:
        began = time.thread_time()
        found = pattern.compiled.match(module) is not None
        self._seconds += time.thread_time() - began
        if self._seconds > _MAX_SECONDS:
            raise self._wrong(pattern.text, "patterns that are matched within seconds")
        return found


class _Pattern(NamedTuple):
    text: str
    compiled: re.Pattern[str]
    value: float


def _compiled(text: str, wrong: Wrong) -> re.Pattern[str]:
    if len(text) > _MAX_CHARACTERS:
        raise wrong(text, f"patterns of at most {_MAX_CHARACTERS} characters")
    if _REPEATED_GROUP.search(text):
        raise wrong(text, "patterns without repeated groups")
    if _steps(text) > _MAX_STEPS:
        raise wrong(text, "patterns with fewer repeats and alternatives")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError, RecursionError):
        raise wrong(text, "regular expressions") from None


def _steps(text: str) -> float:
    """Roughly how many ways there are to match the longest name."""
    repeats = 1 + len(_REPEAT.findall(text))  # with the one before the pattern
    ways = comb(_LONGEST_NAME + repeats, repeats) * 2.0 ** len(_OPTIONAL.findall(text))
    # Alternatives of one group exclude each other, those of several multiply.
    while group := _GROUP.search(text):
        ways *= 1 + group[0].count("|")
        text = text[: group.start()] + text[group.end() :]
    return ways * (1 + text.count("|"))
