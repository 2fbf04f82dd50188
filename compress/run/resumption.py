"""May a run go on where it stopped? Only with the settings that it was begun with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import BadInput


def check_same_settings(begun: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise BadInput, naming what differs, unless the settings are the same."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        changes = ", ".join(
            f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
            for name in names
        )
        raise BadInput(
            f"{begun} was begun with other settings: {changes}; go on with the same, or choose "
            "another place"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 20 else f"{text[:13]}...'"
