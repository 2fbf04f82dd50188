"""An agent: the model calls functions of the program until it has its answer.

Run it with a bundle of a model that was trained to call tools, such as Qwen3 or LFM2:

    python examples/tool_agent.py bundle/ "How long is a meeting from 09:40 to 11:05?"
"""

import sys
from datetime import datetime
from typing import Any

import edgelm

MAX_CALLS = 5
TIME = {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}
FUNCTION: dict[str, Any] = {
    "name": "minutes_between",
    "description": "Minutes from one time of the day to another.",
    "parameters": {
        "type": "object",
        "properties": {"start": TIME, "end": TIME},
        "required": ["start", "end"],
    },
}


def minutes_between(start: str, end: str) -> int:
    """Minutes from `start` to `end`, as 09:40."""
    first, last = (datetime.strptime(time, "%H:%M") for time in (start, end))
    return int((last - first).total_seconds() // 60)


def run(lm: edgelm.LanguageModel, question: str) -> str:
    """Answer with the help of the tools; the first step has to call one."""
    chat = lm.chat(tools=[{"type": "function", "function": FUNCTION}])
    reply = chat.send(question, tool_choice="required", parallel_tool_calls=False).read()
    for _ in range(MAX_CALLS):
        if not reply.tool_calls:
            break
        results: list[edgelm.Message] = []
        for call in reply.tool_calls:  # what a model writes may be wrong: tell it
            try:
                result = str(minutes_between(**call.parsed()))
            except (TypeError, ValueError) as error:
                result = f"error: {error}"
            print(f"{call.name}({call.arguments}) = {result}")
            results.append({"role": "tool", "tool_call_id": call.id, "content": result})
        reply = chat.send(results, max_tokens=128).read()
    return reply.text


if __name__ == "__main__":
    with edgelm.load(sys.argv[1]) as lm:
        print(run(lm, sys.argv[2]))
