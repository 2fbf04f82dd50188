"""TOML of a tree of values, right or not quite."""

import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.fuzz.strange import flipped

_TAILS = (
    "\n]",
    "\nx",
    "\n[a]\n[a]",
    "\n= 1",
    "\n[[",
    '\na = "',
    "\na.b = 1\na = 1",
    "\n\x00",
    "\ufeff",
)


def toml(tree: dict[str, Any]) -> str:
    """A document; what TOML does not have (null) is left out."""
    return "\n".join(_lines(tree, ())) + "\n"


def dump_toml(rng: Random, tree: dict[str, Any]) -> tuple[bytes, str]:
    """A document, one time in ten not quite; and what is odd about it."""
    data = toml(tree).encode("utf-8", "surrogatepass")
    if rng.random() < 0.9:
        return data, ""
    way = rng.choice(("cut", "flip", "tail", "bom", "utf-16", "deep", "keys", "number", "empty"))
    if way == "cut":
        return data[: rng.randrange(len(data))], way
    if way == "flip":
        return flipped(rng, data), way
    if way == "tail":
        return data + rng.choice(_TAILS).encode(), way
    if way == "bom":
        return b"\xef\xbb\xbf" + data, way
    if way == "utf-16":
        return data.decode("utf-8", "replace").encode("utf-16"), way
    if way == "deep":
        return b"deep = " + b"[" * 100_000 + b"]" * 100_000 + b"\n" + data, way
    if way == "keys":
        return data + b"[" + b".".join([b"a"] * 5_000) + b"]\n", way
    if way == "number":
        return b"seed = " + b"9" * 5_000 + b"\n" + data, way
    return b"", way


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"[{'.'.join(map(_key, path))}]"
    tables = []
    for key, value in table.items():
        if isinstance(value, dict) and "\ud800" not in str(key):
            tables.append((key, value))
        elif value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in tables:
        yield from _lines(value, (*path, key))


def _key(key: Any) -> str:
    return _text(str(key))


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        pairs = (f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(pairs)}}}"
    return f"[{', '.join(_value(item) for item in value if item is not None)}]"
