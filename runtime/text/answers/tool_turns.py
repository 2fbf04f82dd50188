"""Turns of tools for templates that write them in another way, or not at all."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.runtime.text.answers.formats import Tags

_INSTRUCTIONS = """\
You can call these functions:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as JSON within <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>
The results are then given to you within <tool_response></tool_response>."""

Turn = dict[str, Any]


def with_instructions(
    messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]], *, system: bool
) -> list[Turn]:
    """A conversation for a template that knows no tools: it tells the model in words.

    Args:
        messages: the turns; calls and results become text of the Hermes format.
        tools: the functions.
        system: whether the template has system messages; else the functions go into the first turn.
    """
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=listed)
    turns = [_as_text(message) for message in messages]
    if turns[0]["role"] == "system" or not system:
        first = {**turns[0], "content": f"{text}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def with_written_calls(messages: Sequence[Turn], tags: Tags) -> list[Turn]:
    """Calls within the content, for a template that leaves them out (Granite 3).

    They are written as the model wrote them: a JSON list between its tags.
    """
    turns = []
    for message in messages:
        if message.get("tool_calls"):
            calls = json.dumps([_named(call["function"]) for call in message["tool_calls"]])
            content = f"{message['content']}{tags.begin}{calls}{tags.end}"
            message = {**message, "content": content}
        turns.append(message)
    return turns


def with_tool_responses(messages: Sequence[Turn]) -> list[Turn]:
    """Results of tools within the turn that called them, as Gemma 4 has them."""
    turns: list[Turn] = []
    for message in messages:
        if message["role"] == "tool" and turns and turns[-1].get("tool_calls"):
            answer = {"name": message.get("name", "unknown"), "response": _value(message)}
            responses = [*turns[-1].get("tool_responses", []), answer]
            turns[-1] = {**turns[-1], "tool_responses": responses}
        else:
            turns.append(message)
    return turns


def _value(message: Turn) -> Any:
    try:
        value = json.loads(message["content"])
    except (ValueError, RecursionError):
        return message["content"]
    return value if isinstance(value, dict) else message["content"]


def _as_text(message: Turn) -> Turn:
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    if not message.get("tool_calls"):
        return message
    calls = [
        f"<tool_call>\n{json.dumps(_named(call['function']), ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    ]
    parts = [part for part in (message["content"], *calls) if part]
    return {"role": "assistant", "content": "\n".join(parts)}


def _named(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}
