"""Typed access to the metadata of a GGUF file."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.errors import BadCheckpoint

_MAX_LAYERS = 2**16
_OF_THE_FILE = ("general.", "split.", "tokenizer.")  # keys that are not of layers
_MAX_NUMBERS = 2**21  # of one array: one number for each token


class GgufMetadata:
    """Key-value pairs of a file; a value of the wrong type is an error that names the key.

    Every method returns its `default` if the key is missing.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.wrong(key, "a string in UTF-8")
        return value

    def integer(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = 2**31 - 1
    ) -> int | None:
        """A whole number; of an array with one for each layer, that of all layers."""
        if key not in self.values:
            return default
        value = self._shared(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number above zero."""
        if key not in self.values:
            return default
        value = self._shared(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number above 0")
        if not math.isfinite(value) or value <= 0:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """True or false."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        """An array of strings; None if the key is missing."""
        if key not in self.values:
            return None
        values = self.values[key]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "an array of strings")
        if not _is_unicode("".join(values)):
            raise self.wrong(key, "an array of strings in UTF-8")
        return values

    def numbers(self, key: str, kinds: str) -> list[Any] | None:
        """An array of numbers; `kinds` are numpy's, e.g. "iu" or "f"; None if it is missing."""
        if key not in self.values:
            return None
        values = self.values[key]
        if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
            names = {"b": "flags", "f": "fractions"}
            raise self.wrong(key, f"an array of {names.get(kinds, 'whole numbers')}")
        if values.size > _MAX_NUMBERS:
            raise self.wrong(key, f"an array of at most {_MAX_NUMBERS} numbers")
        return values.tolist()  # type: ignore[no-any-return]

    def wrong(self, key: str, expected: str) -> BadCheckpoint:
        """The error for an unexpected value."""
        value = self.values[key]
        if isinstance(value, list | np.ndarray):
            shown = f"an array of {len(value)} items"
        else:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return BadCheckpoint(f"{self.path}: {key} is {shown}, expected {expected}")

    def _shared(self, key: str) -> Any:
        value = self.values[key]
        if not isinstance(value, np.ndarray) or not 0 < value.size <= _MAX_LAYERS:
            return value
        first = value[0]
        if (value == first).all():
            return first.item()
        if key.startswith(_OF_THE_FILE):
            return value  # which is wrong there
        raise BadCheckpoint(
            f"{self.path}: {key} differs from layer to layer, which is not supported; all "
            "layers must have the same size"
        )


def _is_unicode(text: str) -> bool:
    # The header keeps bytes that are not UTF-8 as surrogates.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
