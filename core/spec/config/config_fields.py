"""Typed access to the fields of an untrusted configuration.

Every value is checked before use, and the message names the field, its value and what was expected.
The limits are far above any real model; they prevent endless loops and allocations.
"""

from collections.abc import Mapping
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown

MAX_LAYERS = 4096
MAX_WIDTH = 2**24  # hidden and intermediate size, heads, head size, vocabulary
MAX_POSITIONS = 2**31 - 1
_MAX_LABELS = 2**20
MAX_NUMBER = 1e15


class Fields:
    """A configuration, with its class's defaults for missing fields.

    `where` names the object in messages, e.g. `config.json` or `config.json: rope_scaling`.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        *,
        where: str = "config.json",
    ) -> None:
        # A missing field means the class's default; an explicit null means "none".
        self.values = {**(defaults or {}), **values}
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(
        self, name: str, *, least: int = 1, most: int = MAX_WIDTH, hint: str = ""
    ) -> int | None:
        """An integer within limits; None if the field is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        limit = f" up to {most:,}" if isinstance(value, int) and value > most else ""
        raise self.wrong(name, f"{kind}{limit}{hint}")

    def required(self, name: str, *, most: int = MAX_WIDTH) -> int:
        """A positive integer that must be present."""
        hint = "; is this the configuration of a text model?"
        value = self.integer(name, most=most, hint=hint)
        if value is None:
            raise self.wrong(name, f"a positive integer{hint}")
        return value

    def number(
        self, name: str, *, above: float = 0.0, most: float = MAX_NUMBER, zero: bool = False
    ) -> float | None:
        """A finite number above a bound (or zero, if allowed); None if absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        # Comparisons are false for NaN, and exact for integers beyond floats.
        if numeric and (above < value <= most or (zero and value == 0)):
            return float(value)
        least = "of at least 0" if zero else f"above {above:g}"
        raise self.wrong(name, f"a number {least}, up to {most:g}")

    def flag(self, name: str) -> bool:
        """True or false; false if absent."""
        value = self.values.get(name, False)
        if isinstance(value, bool):
            return value
        raise self.wrong(name, "true or false")

    def each_layer(self, name: str, count: int) -> list[Any] | None:
        """A list with one entry for each layer; None if absent or null.

        Raises:
            BadCheckpoint: not a list, or one of another length.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.wrong(name, f"a list with one entry for each of {count} layers")
        if len(value) != count:
            raise BadCheckpoint(
                f"{self.where}: {name} has {len(value)} entries, expected one for each of "
                f"{count} layers"
            )
        return list(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of `count` positive numbers."""
        value = self.values.get(name)
        if isinstance(value, list | tuple) and len(value) == count:
            inner = Fields(dict(enumerate(value)), where=f"{self.where}: {name}")  # type: ignore[arg-type]
            if all(inner.number(index) is not None for index in range(count)):  # type: ignore[arg-type]
                return list(value)
        raise self.wrong(name, f"a list of {count} numbers above 0")

    def nested(self, name: str) -> dict[str, Any]:
        """An object; empty if absent or null."""
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return dict(value)

    def wrong(self, name: str, expected: str) -> BadCheckpoint:
        """The error for a field with a wrong value."""
        return BadCheckpoint(
            f"{self.where}: {name} is {shown(self.values.get(name))}, expected {expected}"
        )


def check_labels(config: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint for a classifier with more classes than transformers can read.

    It makes a name for each class when it reads the file, whatever the model is.
    """
    Fields(config, {}).integer("num_labels", least=0, most=_MAX_LABELS)
