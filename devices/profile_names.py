"""Names of devices and power modes, as people and drivers write them.

A name is compared in lower case and by its words: `NVIDIA GeForce RTX 4060 Laptop GPU`,
`rtx4060 mobile` and `rtx-4060-laptop` are one device, `30w` and `MODE_30W` one power mode.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

# Words that distinguish no device from another.
_NOISE = frozenset(
    ("nvidia", "geforce", "gpu", "generation", "engineering", "reference", "with", "design")
)
_MAX_SUGGESTIONS = 3


def name_words(name: str) -> frozenset[str]:
    """The words of a device's name that distinguish it.

    >>> sorted(name_words("NVIDIA GeForce RTX 3050 Ti Laptop GPU"))
    ['3050ti', 'laptop', 'rtx']
    """
    text = re.sub(r"[\s_()-]+", " ", name.lower()).strip()
    text = text.replace("developer kit", "devkit").replace("max q", "maxq")
    text = re.sub(r"\b(rtx|gtx)(?=[a-z]?\d)", r"\1 ", text)
    text = re.sub(r"(\d) ti\b", r"\1ti", text)
    text = re.sub(r"\bmobile\b", "laptop", text)
    text = re.sub(r"(\d+) ?g(i?)b\b", r"\1gb", text)
    return frozenset(word for word in text.split() if word not in _NOISE)


def match_device(name: str, names: Collection[str], aliases: Mapping[str, str]) -> str | None:
    """The profile that a name stands for; None if there is none, or more than one.

    `aliases` are other names of profiles.
    """
    if name in names:
        return name
    if name in aliases:
        return aliases[name]
    spellings = {**{alias.lower(): of for alias, of in aliases.items()}, **_lowered(names)}
    dashed = re.sub(r"[\s_]+", "-", name.strip().lower())
    if dashed in spellings:
        return spellings[dashed]
    words = name_words(name)
    fitting = {of for spelling, of in spellings.items() if name_words(spelling) == words}
    return fitting.pop() if words and len(fitting) == 1 else None


def without_memory(name: str) -> tuple[str, int] | None:
    """A name and the memory in GB that it ends with or contains; None if it has none."""
    match = re.search(r"[\s_(-]*\b(\d+) ?gi?b\b\)?", name, re.IGNORECASE)
    if match is None:
        return None
    return name[: match.start()] + name[match.end() :], int(match[1])


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """The names that contain the text, then those that look like it; at most three."""
    text = name.lower()
    near = sorted(other for other in known if text and text in other)
    near += difflib.get_close_matches(text, known, n=_MAX_SUGGESTIONS, cutoff=0.5)
    return list(dict.fromkeys(near))[:_MAX_SUGGESTIONS]


def match_mode(name: str, modes: Sequence[str]) -> str | None:
    """The power mode that a name stands for; None if there is none.

    `30w` is MODE_30W, `maxn` also MAXN_SUPER where there is no MAXN, and `15W` the first of
    several modes that differ in their number of CPU cores.
    """
    if name in modes:
        return name
    wanted = _mode_key(name)
    keys = {mode: _mode_key(mode) for mode in modes}
    exact = [mode for mode, key in keys.items() if key == wanted]
    longer = [mode for mode, key in keys.items() if wanted and key.startswith(f"{wanted}_")]
    return next(iter([*exact, *longer]), None)


def _mode_key(name: str) -> str:
    key = re.sub(r"[\s_-]+", "_", name.strip().upper())
    return key.removeprefix("MODE_")


def _lowered(names: Collection[str]) -> dict[str, str]:
    return {name.lower(): name for name in names}
