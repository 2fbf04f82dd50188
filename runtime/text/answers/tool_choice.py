"""`tools` and `tool_choice`, as OpenAI's API has them, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import BadInput

_NAME = re.compile(r"[\w.-]{1,128}")
_CHOICES = ("none", "auto", "required")
_ALLOWED = ("mode", "tools")  # fields of a choice of allowed tools

Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The functions in the prompt, and what the model must do with them.

    `required`: it must call one of `callable_tools`, and with `parallel` it may call several.
    """

    tools: tuple[Tool, ...] = ()
    required: bool = False
    callable_tools: tuple[Tool, ...] = ()
    parallel: bool = True


def read_tool_choice(tools: object, choice: object, parallel: object) -> ToolChoice:
    """Read the three options; without tools, or with the choice "none", there are none.

    Raises:
        BadInput: not tools, or a choice that they do not have.
    """
    listed = _read_tools(tools)
    if parallel is not None and not isinstance(parallel, bool):
        raise BadInput(f"parallel_tool_calls is {str(parallel)[:80]}, expected true or false")
    if choice is None or choice == "auto":
        return ToolChoice(listed, callable_tools=listed, parallel=parallel is not False)
    if choice == "none":
        return ToolChoice()
    allowed = _allowed(choice)
    if allowed is not None:
        mode, names = allowed
        some = _named(listed, names)
        if mode == "auto":
            return read_tool_choice(some, "auto", parallel)
        return ToolChoice(listed, True, some, parallel is not False)
    if not listed:
        raise BadInput(
            f"tool_choice is {str(choice)[:80]}, but there are no tools; give `tools`, or leave "
            "out tool_choice"
        )
    if choice == "required":
        return ToolChoice(listed, True, listed, parallel is not False)
    return ToolChoice(listed, True, _named(listed, [_chosen(choice)]), False)


def _named(listed: tuple[Tool, ...], names: Sequence[str]) -> tuple[Tool, ...]:
    """The tools of these names."""
    known = [str(tool["function"]["name"]) for tool in listed]
    for name in names:
        if name not in known:
            text = f"tool_choice names {name!r}; the tools are: {', '.join(known) or 'none'}"
            raise BadInput(text[:500])
    return tuple(tool for tool in listed if tool["function"]["name"] in names)


def _allowed(choice: object) -> tuple[str, list[str]] | None:
    """Mode and names of a choice of type `allowed_tools`, in either of OpenAI's forms."""
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return None
    inner = choice.get("allowed_tools", choice)
    mode, tools = (inner.get(key) if isinstance(inner, Mapping) else None for key in _ALLOWED)
    if mode not in ("auto", "required") or not isinstance(tools, (list, tuple)) or not tools:
        raise BadInput(
            f"tool_choice is {str(choice)[:80]}, expected allowed_tools with a mode (auto, "
            "required) and tools"
        )
    return str(mode), [_chosen(tool) for tool in tools]


def _read_tools(tools: object) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise BadInput(f"tools is a {type(tools).__name__}, expected a list of functions")
    return tuple(_read_tool(tool) for tool in tools)


def _read_tool(tool: object) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(
            f"bad tool {str(tool)[:100]}; expected "
            '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}'
            " with a name of letters, digits, _, . and -"
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise BadInput(
            f"the parameters of the tool {name} are a {type(parameters).__name__}, expected a JSON "
            "schema (an object)"
        )
    return {"type": "function", "function": dict(function)}


def _chosen(choice: object) -> str:
    name = None
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadInput(
            f"tool_choice is {str(choice)[:80]}, expected {', '.join(_CHOICES)} or "
            '{"type": "function", "function": {"name": ...}}'
        )
    return name
