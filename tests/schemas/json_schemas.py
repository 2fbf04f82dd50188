"""JSON schemas as applications write them, made from a seed.

Their keywords and how they nest follow JSONSchemaBench (arXiv 2501.10868): objects of typed
properties, arrays, enumerations, unions, references, recursion, patterns, formats and ranges.
"""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = ("id", "name", "created_at", "tags", "größe", "is-active", "url", "a b", "items", "$type")
_PATTERNS = (
    "^[A-Z]{2}[0-9]{3}$",
    "^(red|green|blue)$",
    r"^\d{3}-\d{4}$",
    "^[a-z_][a-z0-9_]{0,8}$",
    "^[^ ]{2,5}$",
)
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def json_schemas(count: int) -> list[Schema]:
    """Make `count` schemas; the same ones each time."""
    return [_document(random.Random(seed)) for seed in range(count)]


def _document(rng: random.Random) -> Schema:
    kind = rng.randrange(8)
    if kind == 0:
        return _recursive(rng)
    if kind == 1:
        return _with_definitions(rng)
    if kind == 2:
        return {"type": "array", "items": _value(rng, 2), "minItems": 1, "maxItems": 3}
    return _object(rng, 3)


def _value(rng: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [_string, _number, _choice, _flag]
    if depth == 0 or rng.random() < 0.55:
        return rng.choice(leaves)(rng)
    return rng.choice((_object, _array, _union, _tuple, _combined))(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 5))
    schema: Schema = {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }
    schema["additionalProperties"] = rng.choice((False, False, False, {"type": "integer"}))
    if rng.random() < 0.2:
        schema["title"], schema["description"] = "A record", 'With "quotes" and a \\ in it.'
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": _value(rng, depth), "maxItems": rng.randint(1, 4)}
    if rng.random() < 0.5:
        schema["minItems"] = rng.randint(0, schema["maxItems"])
    return schema


def _tuple(rng: random.Random, depth: int) -> Schema:
    parts = [_value(rng, depth) for _ in range(rng.randint(1, 3))]
    count = len(parts)
    return {
        "type": "array",
        "prefixItems": parts,
        "items": False,
        "minItems": count,
        "maxItems": count,
    }


def _union(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(rng, depth), {"type": "null"}, _number(rng)]}


def _combined(rng: random.Random, depth: int) -> Schema:
    first, second = rng.sample(_NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {first: _value(rng, depth)}, "required": [first]},
            {"type": "object", "properties": {second: _number(rng)}, "required": [second]},
        ]
    }


def _string(rng: random.Random) -> Schema:
    kind = rng.randrange(5)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(_PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    if kind == 2:
        least = rng.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}
    return {"type": "string"}


def _number(rng: random.Random) -> Schema:
    low = rng.choice((-1000, -7, 0, 1, 3.5, 100))
    return rng.choice(
        (
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": int(low), "maximum": int(low) + 50},
            {"type": "number", "exclusiveMinimum": low, "maximum": low + 10},
            {"type": "integer", "multipleOf": 5, "minimum": 0},
        )
    )


def _choice(rng: random.Random) -> Schema:
    values = ["red", "green", 'qu"ote', "日本", "", 3, -1.5, True, None, {"a": [1]}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _flag(rng: random.Random) -> Schema:
    return rng.choice(({"type": "boolean"}, {"type": ["boolean", "null"]}, {"type": "null"}))


def _recursive(rng: random.Random) -> Schema:
    node: Schema = {
        "type": "object",
        "properties": {"value": _value(rng, 1), "next": {"$ref": "#/$defs/node"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def _with_definitions(rng: random.Random) -> Schema:
    definitions = {name: _value(rng, 1) for name in ("point", "label")}
    return {
        "type": "object",
        "properties": {
            "from": {"$ref": "#/$defs/point"},
            "to": {"$ref": "#/$defs/point"},
            "labels": {"type": "array", "items": {"$ref": "#/$defs/label"}, "maxItems": 2},
        },
        "required": ["from", "labels"],
        "additionalProperties": False,
        "$defs": definitions,
    }
