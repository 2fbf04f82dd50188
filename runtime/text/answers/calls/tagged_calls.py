"""Calls whose arguments stand between tags (Qwen3-Coder, Qwen3.5, Nemotron 3; GLM 4.5).

    <function=get_weather>                get_weather
    <parameter=city>                      <arg_key>city</arg_key>
    Paris                                 <arg_value>Paris</arg_value>
    </parameter>
    </function>

A value has no quotes, so its type comes from the tool's schema: text stays as it is where the
schema says string, all else is read as JSON where it is JSON.
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

Tool = Mapping[str, Any]


def read_function_tags(body: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """Read `<function=...>` with `<parameter=...>`.

    Raises:
        ValueError: something else.
    """
    calls = []
    for name, inner in _FUNCTION.findall(body):
        arguments = {
            key.strip(): typed_value(text, _type_of(tools, name.strip(), key.strip()))
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
        key.strip(): typed_value(text.strip(), _type_of(tools, name, key.strip()))
        for key, text in _PAIR.findall(body)
    }
    return [tool_call(name, arguments)]


def typed_value(text: str, kind: Any) -> Any:
    """A value from its text; `kind` is `type` of its schema, or None where nothing is known."""
    if kind == "string":
        return text
    if text.strip() in _CONSTANTS:
        return _CONSTANTS[text.strip()]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def _type_of(tools: Sequence[Tool], name: str, key: str) -> Any:
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties") or {}
            schema = properties.get(key)
            return schema.get("type") if isinstance(schema, Mapping) else None
    return None
