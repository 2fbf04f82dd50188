"""Whether a value is valid under a JSON schema, for the keywords that json_schemas.py uses."""

import math
import re
from typing import Any

_FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?([zZ]|[+-]\d\d:\d\d)",
    "date-time": r"\d{4}-\d\d-\d\d[tT]\d\d:\d\d:\d\d(\.\d+)?([zZ]|[+-]\d\d:\d\d)",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"(\d{1,3}\.){3}\d{1,3}",
    "email": r"(?s:.+)@.+",
}
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
}


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether `value` is what the schema describes."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return is_valid(value, root["$defs"][name], root)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is_type(value, name) for name in types):
            return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return False
    return (
        any(is_valid(value, part, root) for part in schema.get("anyOf", [True]))
        and all(is_valid(value, part, root) for part in schema.get("allOf", []))
        and _fits(value, schema, root)
    )


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _is_type(value: Any, name: str) -> bool:
    if name == "integer":
        return _is_type(value, "number") and value == math.floor(value)
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _fits(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, dict):
        return _object_fits(value, schema, root)
    if isinstance(value, list):
        return _array_fits(value, schema, root)
    if isinstance(value, str):
        return _string_fits(value, schema)
    return isinstance(value, bool) or value is None or _number_fits(value, schema)


def _object_fits(value: dict[str, Any], schema: Any, root: Any) -> bool:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(name in value for name in schema.get("required", [])) and all(
        is_valid(item, known.get(name, rest), root) for name, item in value.items()
    )


def _array_fits(value: list[Any], schema: Any, root: Any) -> bool:
    first = schema.get("prefixItems", [])
    rest = [schema.get("items", True)] * max(0, len(value) - len(first))
    return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf) and all(
        is_valid(item, part, root) for item, part in zip(value, [*first, *rest], strict=False)
    )


def _string_fits(value: str, schema: Any) -> bool:
    return (
        schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        and re.search(schema.get("pattern", ""), value) is not None
        and ("format" not in schema or re.fullmatch(_FORMATS[schema["format"]], value) is not None)
    )


def _number_fits(value: float, schema: Any) -> bool:
    return (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    )
