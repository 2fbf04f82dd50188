"""Calls whose arguments stand between tags (Qwen3-Coder, Qwen3.5, Nemotron 3; GLM 4.5).

    <function=get_weather>                get_weather
    <parameter=city>                      <arg_key>city</arg_key>
    Paris                                 <arg_value>Paris</arg_value>
    </parameter>
    </function>

A value has no quotes, so its type comes from the tool's schema: text stays as it is where the
schema allows only that (or null), all else is read as JSON where it is JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.runtime.text.answers.calls.tool_call import ToolCall, tool_call

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(
    r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.DOTALL
)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_CONSTANTS = {"True": True, "False": False, "None": None}
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_MAX_DEPTH = 8  # of references and choices in a schema

Tool = Mapping[str, Any]


def read_function_tags(body: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """Read `<function=...>` with `<parameter=...>`.

    Raises:
        ValueError: something else.
    """
    calls = []
    for name, inner in _FUNCTION.findall(body):
        arguments = {
            key.strip(): typed_value(text, *_schema_of(tools, name.strip(), key.strip()))
            for key, text in _PARAMETER.findall(inner)
        }
        calls.append(tool_call(name.strip(), arguments))
    if not calls:
        raise ValueError("no function")
    return calls


def read_key_value_tags(body: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """Read a name with `<arg_key>` and `<arg_value>`.

    Raises:
        ValueError: something else.
    """
    name = body.partition("<arg_key>")[0].strip()
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("no name")
    arguments = {
        key.strip(): typed_value(text.strip(), *_schema_of(tools, name, key.strip()))
        for key, text in _PAIR.findall(body)
    }
    return [tool_call(name, arguments)]


def typed_value(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value from its text.

    Args:
        text: as the model wrote it.
        schema: of the value; None where nothing is known.
        root: the schema that it belongs to, for references.
    """
    if _is_plain_text(schema):
        return text
    types = _types(schema, root)
    is_text = types is not None and "string" in types and types <= {"string", "null"}
    if text.strip() in _CONSTANTS and not is_text:
        return _CONSTANTS[text.strip()]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = None if text.strip() == "None" else text
    # A text may have quotes: a grammar writes them where the schema is not plainly that of a text.
    allowed = isinstance(value, str) or (value is None and types is not None and "null" in types)
    return text if is_text and not allowed else value


def _is_plain_text(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    values = schema.get("enum")
    texts = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return schema.get("type") == "string" or (texts and "type" not in schema)


def _schema_of(tools: Sequence[Tool], name: str, key: str) -> tuple[Any, Mapping[str, Any]]:
    """The schema of an argument, and that of all arguments."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            parameters = function.get("parameters") or {}
            return (parameters.get("properties") or {}).get(key), parameters
    return None, {}


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str] | None:
    """The JSON types that a schema allows; None if that is not known."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset(_NAMES.get(type(value), "object") for value in values)
    given = schema.get("type")
    if isinstance(given, (str, list)):
        return frozenset(map(str, [given] if isinstance(given, str) else given))
    inner = next((schema[key] for key in ("anyOf", "oneOf", "allOf") if key in schema), None)
    if inner is None and isinstance(schema.get("$ref"), str):
        inner = [_referred(schema["$ref"], root)]
    if not isinstance(inner, list) or ("allOf" in schema and len(inner) > 1):
        return None
    kinds = [_types(one, root, depth + 1) for one in inner]
    return None if None in kinds else frozenset().union(*(kind or () for kind in kinds))


def _referred(name: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/NAME` stands for; None for other references."""
    found: Any = root
    for part in name.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
