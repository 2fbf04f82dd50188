"""Calls in the harmony format of gpt-oss.

<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}
"""

import re

from edgelm.runtime.text.answers.calls.json_calls import read_object
from edgelm.runtime.text.answers.calls.tool_call import ToolCall, tool_call

_CALL = re.compile(r"([\w.-]+)(.*?)<\|message\|>(.*)", re.DOTALL)


def read_harmony_call(body: str) -> list[ToolCall]:
    """Read what follows `to=functions.`.

    Raises:
        ValueError: something else.
    """
    found = _CALL.fullmatch(body.strip())
    if found is None:
        raise ValueError("no message")
    name, _, arguments = found.groups()
    return [tool_call(name, read_object(arguments) if arguments.strip() else {})]
