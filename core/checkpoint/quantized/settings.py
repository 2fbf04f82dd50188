"""The fields of a quantization's configuration, checked as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown


@dataclass(frozen=True)
class Settings:
    """A JSON object that describes how weights were quantized.

    source: what messages call it, e.g. `config.json, quantization_config`.
    """

    folder: Path
    source: str
    values: Mapping[str, Any]

    def integer(self, *names: str, choices: tuple[int, ...] | None = None) -> int | None:
        """The first of these fields that is present; None where none is.

        Raises:
            BadCheckpoint: it is not an integer, or not one of the choices.
        """
        name, value = self._first(names)
        if value is None:
            return None
        allowed = isinstance(value, int) and not isinstance(value, bool)
        if not allowed or (choices is not None and value not in choices):
            expected = "an integer" if choices is None else _either(map(str, choices))
            raise self.wrong(name, value, expected)
        return int(value)

    def text(self, *names: str, choices: tuple[str, ...], default: str) -> str:
        """The first of these fields that is present, in lower case.

        Raises:
            BadCheckpoint: it is not one of the choices.
        """
        name, value = self._first(names)
        if value is None:
            return default
        if not isinstance(value, str) or value.lower() not in choices:
            raise self.wrong(name, value, _either(choices))
        return value.lower()

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false.

        Raises:
            BadCheckpoint: it is something else.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def section(self, name: str) -> "Settings":
        """An object inside; empty where there is none.

        Raises:
            BadCheckpoint: it is something else.
        """
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Settings(self.folder, f"{self.source}, {name}", value)

    def wrong(self, name: str, value: Any, expected: str) -> BadCheckpoint:
        """An error about a field."""
        return BadCheckpoint(
            f"{self.folder}: {self.source}: {name} is {shown(value)}, expected {expected}; start "
            "from the unquantized model, or quantize it again in that way"
        )

    def _first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        return names[0], None


def _either(choices: Any) -> str:
    names = list(choices)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
