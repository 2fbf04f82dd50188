r"""`response_format`, as OpenAI's API has it: what the generated text must look like.

    {"type": "text"}                                              no constraint
    {"type": "json_object"}                                       any JSON object
    {"type": "json_schema", "json_schema": {"schema": ..., "strict": true}}
    {"type": "regex", "regex": "[0-9]{4}-[0-9]{2}"}               a regular expression
    {"type": "grammar", "grammar": "start: \"yes\" | \"no\""}     a grammar in Lark's syntax

The last two are not OpenAI's. A schema may also be given next to `type`, as in the Responses API.
Without `strict`, keywords of a schema that cannot be enforced are ignored, with a warning.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgelm.errors import BadInput
from edgelm.reasons import reason

Kind = Literal["json_schema", "regex", "grammar", "tool_calls"]

_MAX_CHARACTERS = 2**20
_TYPES = ("text", "json_object", "json_schema", "regex", "grammar")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A constraint: the text of a JSON schema, a regular expression or a Lark grammar.

    `tool_calls` is a grammar that was made from the schemas of tools. `strict` refuses a schema of
    which a part cannot be enforced.
    """

    kind: Kind
    definition: str
    strict: bool = True

    def schema(self) -> dict[str, Any]:
        """The JSON schema of one of that kind."""
        schema: dict[str, Any] = json.loads(self.definition)
        return schema


def read_response_format(value: object) -> ResponseFormat | None:
    """Read the option; None where nothing is constrained.

    Raises:
        BadInput: not a response format.
    """
    if value is None or isinstance(value, ResponseFormat):
        return value
    if not isinstance(value, Mapping) or value.get("type") not in _TYPES:
        raise BadInput(
            f"response_format is {str(value)[:100]}, expected a dict with a type: "
            f"{', '.join(_TYPES)}"
        )
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat("json_schema", '{"type": "object"}')
    if kind == "json_schema":
        return _read_schema(value)
    return ResponseFormat(kind, _text(kind, value.get(kind)))


def _read_schema(value: Mapping[str, Any]) -> ResponseFormat:
    given = value.get("json_schema", value)
    if not isinstance(given, Mapping) or not isinstance(given.get("schema"), (Mapping, bool)):
        raise BadInput(
            "response_format of type json_schema has no schema; expected "
            '{"type": "json_schema", "json_schema": {"schema": {...}}}'
        )
    strict = given.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise BadInput(f"strict of response_format is {str(strict)[:80]!r}, expected true or false")
    return ResponseFormat("json_schema", _schema_text(given["schema"]), bool(strict))


def _schema_text(schema: Mapping[str, Any] | bool) -> str:
    if schema is False:
        raise BadInput("the JSON schema is false: no value is valid; expected an object")
    try:
        text = json.dumps({} if schema is True else schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the JSON schema is not JSON: {reason(error)}") from None
    return _limited("the JSON schema", text)


def _text(kind: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(
            f"response_format of type {kind} has no {kind}; expected "
            f'{{"type": "{kind}", "{kind}": "..."}}'
        )
    return _limited(f"the {kind}", value)


def _limited(name: str, text: str) -> str:
    if len(text) > _MAX_CHARACTERS:
        raise BadInput(f"{name} has {len(text)} characters, expected at most {_MAX_CHARACTERS}")
    return text
