"""Calls that are written as JSON: `{"name": ..., "arguments": {...}}`, one or several."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from edgelm.runtime.text.answers.calls.tool_call import ToolCall, tool_call

_BETWEEN = re.compile(r"[\s;,]*")
_MAX_CHARACTERS = 200_000  # of Python literals, whose parser is slow
_FENCE = re.compile(r"^```[a-z]*\s*(.*?)\s*```$", re.DOTALL)


def read_json_calls(body: str) -> list[ToolCall]:
    """Read objects or lists of them, separated by white space, commas or semicolons.

    Raises:
        ValueError: something else.
    """
    calls = [call for value in _values(body) for call in _calls(value)]
    if not calls:
        raise ValueError("no call")
    return calls


def read_named_calls(body: str) -> list[ToolCall]:
    """Read Mistral's `name[ARGS]{...}`, one or several after `[TOOL_CALLS]`, or a JSON list."""
    calls = []
    for part in body.split("[TOOL_CALLS]"):
        name, marker, arguments = part.partition("[ARGS]")
        if not marker:
            name, brace, rest = part.partition("{")
            arguments = brace + rest
        name = name.partition("[CALL_ID]")[0].strip()
        if re.fullmatch(r"[\w.-]+", name):
            calls.append(tool_call(name, read_object(arguments)))
        else:
            calls += read_json_calls(part)
    return calls


def read_object(text: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        ValueError: something else.
    """
    values = _values(text)
    if len(values) != 1 or not isinstance(values[0], dict):
        raise ValueError("not one object")
    return values[0]


def _values(body: str) -> list[Any]:
    body = body.strip()
    fenced = _FENCE.match(body)
    body = fenced[1] if fenced else body
    # Small models write raw line breaks into strings.
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)
    values, at = [], 0
    try:
        while at < len(body):
            value, at = decoder.raw_decode(body, at)
            values.append(value)
            between = _BETWEEN.match(body, at)
            at = between.end() if between else at
    except ValueError:
        return [_literal(body)]
    except RecursionError:
        raise ValueError("nested too deep") from None
    return values


def _literal(body: str) -> Any:
    """A value with Python's quotes, which small models write, too."""
    if len(body) > _MAX_CHARACTERS:
        raise ValueError("too long")
    try:
        return ast.literal_eval(body)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"neither JSON nor a Python literal: {type(error).__name__}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _calls(value: Any) -> list[ToolCall]:
    if isinstance(value, list):
        return [call for item in value for call in _calls(item)]
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("a call without a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_object(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ValueError("arguments that are not an object")
    return [tool_call(value["name"], arguments)]
