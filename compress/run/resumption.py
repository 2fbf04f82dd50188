"""A run may be resumed only with the settings that it was started with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import BadInput


def check_same_settings(place: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise BadInput, naming what differs, unless the settings are the same."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        changes = ", ".join(
            f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
            for name in names
        )
        raise BadInput(
            f"{place} was started with other settings: {changes}; resume with the same ones, or "
            "choose another output"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 20 else f"{text[:13]}...'"
