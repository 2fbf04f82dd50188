"""Whether calls of functions are the right ones: the rules of BFCL's AST checker.

(Patil et al. 2025; bfcl-eval 2026.3.23, `ast_checker.py`, for functions of Python.)

A right call lists, for each argument, the values that are accepted; "" among them means that the
argument may be left out. Texts are compared without case, spaces and some punctuation, one level
deep in lists and objects; types must be those of the schema, or of an accepted value; parallel
calls may come in any order.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.compress.evaluation.backend import Call

Expected = Mapping[str, Mapping[str, Sequence[Any]]]
"""{name: {argument: accepted values}}, of one name."""
_IGNORED = re.compile(r"[ ,./\-_*^]")
_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def calls_match(
    calls: Sequence[Call], expected: Sequence[Expected], schemas: Mapping[str, Any]
) -> bool:
    """Whether each right call was made, once, and no other.

    Args:
        calls: what a model called.
        expected: the right calls.
        schemas: the parameters of each function that was offered, as JSON schema.
    """
    if len(calls) != len(expected):
        return False
    rest = list(calls)
    for one in expected:
        made = next((at for at, call in enumerate(rest) if _call_matches(call, one, schemas)), None)
        if made is None:
            return False
        del rest[made]  # by place: a call with 5.0 equals one with 5, which may not be right
    return True


def function_name(name: str) -> str:
    """A function's name as OpenAI allows it: without dots."""
    return name.replace(".", "_")


def first_accepted(expected: Expected) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a right call: of each argument the first value that is accepted."""
    ((name, values),) = expected.items()
    return function_name(name), _first_fields(values)


def _call_matches(call: Call, expected: Expected, schemas: Mapping[str, Any]) -> bool:
    ((name, values),) = expected.items()
    name, given = function_name(name), call.arguments
    if call.name != name or name not in schemas:
        return False
    properties = schemas[name].get("properties", {})
    required = set(schemas[name].get("required", ()))
    if not required <= given.keys() or not given.keys() <= properties.keys() & values.keys():
        return False
    return all(
        _value_matches(given[argument], accepted, properties[argument])
        if argument in given
        else "" in accepted
        for argument, accepted in values.items()
    )


def _value_matches(value: Any, accepted: Sequence[Any], schema: Any) -> bool:
    kind = _type(schema)
    if kind is float and type(value) is int:
        value = float(value)
    answered: type | None = next((type(one) for one in accepted if one != ""), None)
    if kind is None:
        return any(_standard(value) == _standard(one) for one in accepted)
    if not _is(value, kind):
        # The name of a variable, say, where the schema has a number.
        return answered is not None and _is(value, answered) and value in accepted
    nested = _type(schema.get("items")) if kind is list else None
    if nested and not any(_items_fit(value, one, nested) for one in accepted):
        return False
    if answered not in (None, kind):
        return value in accepted
    return any(_one_matches(value, one, nested) for one in accepted)


def _one_matches(value: Any, accepted: Any, nested: type | None) -> bool:
    """A value of the schema's type against one that is accepted."""
    if isinstance(value, dict):
        return isinstance(accepted, dict) and _fields_match(value, accepted)
    if isinstance(value, list):
        accepted = accepted or []  # an optional list may be empty
        if nested is dict:
            return _objects_match(value, accepted)
    return bool(_standard(value) == _standard(accepted))


def _is(value: Any, kind: type) -> bool:
    """Whether a value has exactly this type: a boolean is not an integer."""
    return type(value) is kind


def _type(schema: Any) -> type | None:
    """The Python type of a schema; None where it names none, or several."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    return _TYPES.get(kind) if isinstance(kind, str) else None


def _items_fit(value: Sequence[Any], accepted: Any, kind: type) -> bool:
    """Whether the items of a list have the schema's type, or that of the accepted items."""
    if not isinstance(accepted, list):
        return True
    answered = next((type(one) for one in accepted if one != ""), None)
    return all(type(item) in (kind, answered) for item in value)


def _objects_match(value: Sequence[Any], accepted: Any) -> bool:
    """A list of objects against one accepted list."""
    return len(value) == len(accepted) and all(
        isinstance(one, dict) and isinstance(other, dict) and _fields_match(one, other)
        for one, other in zip(value, accepted, strict=True)
    )


def _fields_match(value: Mapping[str, Any], accepted: Mapping[str, Any]) -> bool:
    """An object against the values that each of its fields accepts."""
    return value.keys() <= accepted.keys() and all(
        _field_matches(value[key], _choices(choices)) if key in value else "" in _choices(choices)
        for key, choices in accepted.items()
    )


def _field_matches(value: Any, choices: Sequence[Any]) -> bool:
    if isinstance(value, dict):
        return any(isinstance(one, dict) and _fields_match(value, one) for one in choices)
    if isinstance(value, str):
        return any(_standard(value) == _standard(one) for one in choices)
    return value in choices


def _choices(choices: Any) -> Sequence[Any]:
    return choices if isinstance(choices, list) else [choices]


def _standard(value: Any) -> Any:
    """A text without case, spaces and punctuation; a list with such texts."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower().replace("'", '"')
    if isinstance(value, list):
        return [_standard(one) if isinstance(one, str) else one for one in value]
    return value


def _first_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {key: [one for one in _choices(given) if one != ""] for key, given in fields.items()}
    return {key: _first(given[0]) for key, given in chosen.items() if given}


def _first(accepted: Any) -> Any:
    """An accepted value, of whose objects each field lists values of its own."""
    if isinstance(accepted, dict):
        return _first_fields(accepted)
    if isinstance(accepted, list):
        return [_first(one) for one in accepted]
    return accepted
