"""Calls that are written as Python: `[get_weather(city="Paris", days=3)]` (LFM2, OLMo 3)."""

import ast
from typing import Any

from edgelm.runtime.text.answers.calls.tool_call import ToolCall, tool_call

_MAX_CHARACTERS = 200_000
_CONSTANTS = {"true": True, "false": False, "null": None}


def read_python_calls(body: str) -> list[ToolCall]:
    """Read calls: in a list, or one per line.

    Raises:
        ValueError: something else.
    """
    text = body.strip()
    if len(text) > _MAX_CHARACTERS:
        raise ValueError("too long")
    if not text.startswith("["):
        text = "[" + ",".join(line for line in text.splitlines() if line.strip()) + "]"
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            raise ValueError("not a list of calls")
        return [_call(node) for node in tree.elts]
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"not Python: {type(error).__name__}") from None


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments without names")
        arguments[keyword.arg] = _value(keyword.value)
    return tool_call(ast.unparse(node.func), arguments)


def _value(node: ast.expr) -> Any:
    """A literal; JSON's names of constants are accepted inside, too."""
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError("a dict without keys")
        return {
            str(_value(key)): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    return ast.literal_eval(node)
