"""Grammars of tool calls, for `tool_choice`: each family's syntax with the arguments' schemas.

Lark, as llguidance reads it (github.com/guidance-ai/llguidance). A call is a rule;
the calls of an answer follow each other as the family writes several.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgelm.errors import BadInput
from edgelm.runtime.text.answers.rule_writer import RuleWriter

Tool = Mapping[str, Any]
# From a function to the right side of its rule.
CallRule = Callable[[Tool, RuleWriter], str]

_DEFINITIONS = ("$defs", "definitions")
# Keywords with which properties may come from elsewhere.
_OPEN = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}
_MAX_REPEAT = 10_000


def call_rules(family: str, tools: Sequence[Tool], writer: RuleWriter, *, parallel: bool) -> str:
    """Rules of which `calls` is one call or several.

    Args:
        family: the name of the answer format.
        tools: the functions that may be called.
        writer: of the model's control tokens.
        parallel: whether several calls may follow each other.

    Raises:
        BadInput: a family whose calls have no grammar here.
    """
    if family not in _FAMILIES:
        raise BadInput(
            f"tool_choice cannot be enforced with this model's chat template ({family}); leave it "
            "out, or use response_format with a schema of the call"
        )
    begin, between, end, call = _FAMILIES[family]
    rules = [f"call_{n}: {call(tool['function'], writer)}" for n, tool in enumerate(tools)]
    one = " | ".join(f"call_{n}" for n in range(len(tools)))
    more = f"({writer.literal(between)} call)*" if parallel else ""
    calls = f"calls: {writer.literal(begin)} call {more} {writer.literal(end)}"
    return "\n".join([calls, f"call: {one}", *rules, *writer.lines])


def _parameters(function: Tool) -> dict[str, Any]:
    """The schema of the arguments; small models add properties where a schema leaves that open."""
    given = function.get("parameters") or {}
    closed = {} if _OPEN & set(given) else {"additionalProperties": False}
    return {"type": "object", **closed, **given}


def _json(function: Tool, schema: Any, writer: RuleWriter) -> str:
    """A JSON value of a schema within the parameters, with what it may refer to."""
    parameters = _parameters(function)
    shared = {name: parameters[name] for name in _DEFINITIONS if name in parameters}
    given = dict(schema) if isinstance(schema, Mapping) else {}
    return writer.json({**given, **shared}, strict=bool(function.get("strict")))


def _object(key: str) -> CallRule:
    """`{"name": ..., KEY: {...}}`."""

    def call(function: Tool, writer: RuleWriter) -> str:
        parameters = _parameters(function)
        for name in _DEFINITIONS:  # they are referred to from the root
            parameters.pop(name, None)
        schema = {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, key: parameters},
            "required": ["name", key],
            "additionalProperties": False,
        }
        return _json(function, schema, writer)

    return call


def _hermes(function: Tool, writer: RuleWriter) -> str:
    inner = _object("arguments")(function, writer)
    return (
        f"{writer.literal('<tool_call>' + _LINE)} {inner} {writer.literal(_LINE + '</tool_call>')}"
    )


def _named(before: str, after: str) -> CallRule:
    """The name between two texts, and the arguments as JSON."""

    def call(function: Tool, writer: RuleWriter) -> str:
        head = writer.literal(before + function["name"] + after)
        return f"{head} {_json(function, _parameters(function), writer)}"

    return call


def _arguments(function: Tool, value: Callable[[str, Any], str], separator: str = "") -> str:
    """Arguments in order: the required ones, then any of the others."""
    parameters = _parameters(function)
    properties: Mapping[str, Any] = parameters.get("properties") or {}
    required = [name for name in properties if name in (parameters.get("required") or ())]
    rest = [value(name, properties[name]) for name in properties if name not in required]
    first = f" {separator} ".join(value(name, properties[name]) for name in required)
    if first or not separator:
        return " ".join([first, *(f"({separator} {one})?" for one in rest)])
    # Whichever comes first has no separator before it.
    tails = [" ".join(f"({separator} {one})?" for one in rest[n + 1 :]) for n in range(len(rest))]
    choices = " | ".join(f"{one} {tail}" for one, tail in zip(rest, tails, strict=True))
    return f"({choices})?" if choices else ""


def _repeat(schema: Mapping[str, Any], least: int) -> str:
    """The repetition of a character in a regular expression, as `minLength` and `maxLength` say."""
    low, high = schema.get("minLength"), schema.get("maxLength")
    low = low if isinstance(low, int) and 0 <= low <= _MAX_REPEAT else least
    limit = str(high) if isinstance(high, int) and low <= high <= _MAX_REPEAT else ""
    return f"{{{low},{limit}}}"


def _choices(schema: Any) -> str | None:
    """The texts of an enumeration without quotes; None if it is not one of texts."""
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    if not values or not all(isinstance(value, str) for value in values):
        return None
    return "(" + " | ".join(map(json.dumps, values)) + ")"


def _is_text(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _function_tags(function: Tool, writer: RuleWriter) -> str:
    def value(name: str, schema: Any) -> str:
        begin, end = writer.literal(f"<parameter={name}>{_LINE}"), f"{_LINE}</parameter>{_LINE}"
        if _is_text(schema) and _choices(schema) is None:
            return f"{begin} {writer.until(end, _repeat(schema, 1))}"  # it may hold line breaks
        inner = _choices(schema) or _json(function, schema, writer)
        return f"{begin} {inner} {writer.literal(end)}"

    head = writer.literal(f"<tool_call>{_LINE}<function={function['name']}>{_LINE}")
    tail = writer.literal(f"</function>{_LINE}</tool_call>")
    return f"{head} {_arguments(function, value)} {tail}"


def _key_value_tags(function: Tool, writer: RuleWriter) -> str:
    def value(name: str, schema: Any) -> str:
        inner = _choices(schema)
        if inner is None and _is_text(schema):
            inner = f"/[^<]{_repeat(schema, 1)}/"
        begin = writer.literal(f"<arg_key>{name}</arg_key>{_LINE}<arg_value>")
        end = writer.literal(f"</arg_value>{_LINE}")
        return f"{begin} {inner or _json(function, schema, writer)} {end}"

    head = writer.literal(f"<tool_call>{function['name']}{_LINE}")
    return f"{head} {_arguments(function, value)} {writer.literal('</tool_call>')}"


def _python(function: Tool, writer: RuleWriter) -> str:
    def value(name: str, schema: Any) -> str:
        is_flag = isinstance(schema, Mapping) and schema.get("type") == "boolean"
        inner = '("True" | "False")' if is_flag else _json(function, schema, writer)
        return f"{writer.literal(name + '=')} {inner}"

    arguments = _arguments(function, value, writer.literal(", "))
    return f"{writer.literal(function['name'] + '(')} {arguments} {writer.literal(')')}"


def _gemma(begin: str, quote: str, end: str) -> CallRule:
    def call(function: Tool, writer: RuleWriter) -> str:
        def value(name: str, schema: Any) -> str:
            return f"{writer.literal(name + ':')} {_gemma_value(function, schema, quote, writer)}"

        head = writer.literal(f"{begin}call:{function['name']}{{")
        arguments = _arguments(function, value, writer.literal(","))
        return f"{head} {arguments} {writer.literal('}' + end)}"

    return call


def _gemma_value(function: Tool, schema: Any, quote: str, writer: RuleWriter) -> str:
    given = schema if isinstance(schema, Mapping) else {}
    if given.get("type") in ("integer", "number", "boolean", "null"):
        return _json(function, given, writer)
    if given.get("type") == "array" and isinstance(given.get("items"), Mapping):
        item = _gemma_value(function, given["items"], quote, writer)
        return f'"[" ({item} ("," {item})*)? "]"'
    text = _choices(given) or f"/[^<]{_repeat(given, 0)}/"
    return f"{writer.literal(quote)} {text} {writer.literal(quote)}"


_LINE = "\n"
# Family -> text before all calls, between two, after all; one call.
_FAMILIES: dict[str, tuple[str, str, str, CallRule]] = {
    "hermes": ("", "\n", "", _hermes),
    "plain": ("", "\n", "", _hermes),
    "qwen3-coder": ("", "\n", "", _function_tags),
    "glm": ("", "\n", "", _key_value_tags),
    "llama3": ("", "; ", "", _object("parameters")),
    "mistral": ("[TOOL_CALLS][", ", ", "]", _object("arguments")),
    "mistral-args": ("", "", "", _named("[TOOL_CALLS]", "[ARGS]")),
    "gemma4": ("", "", "", _gemma("<|tool_call>", '<|"|>', "<tool_call|>")),
    "functiongemma": (
        "",
        "",
        "",
        _gemma("<start_function_call>", "<escape>", "<end_function_call>"),
    ),
    "lfm2": ("<|tool_call_start|>[", ", ", "]<|tool_call_end|>", _python),
    "olmo3": ("<function_calls>\n", "\n", "\n</function_calls>", _python),
    "granite": ("<|tool_call|>[", ", ", "]", _object("arguments")),
    "phi4": ("<|tool_call|>[", ", ", "]<|/tool_call|>", _object("arguments")),
    "nemotron": ("<TOOLCALL>[", ", ", "]</TOOLCALL>", _object("arguments")),
    "harmony": (
        "",
        "<|call|><|start|>assistant",
        "",
        _named("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>"),
    ),
}
