"""Answers on a terminal or in a pipe, as text or as JSON."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_NOTES = {
    "context": "(the context is full)",
    "cancelled": "(stopped)",
    "max_tokens": "(stopped after {tokens} tokens; -n allows more)",
}


class Printer:
    """Prints answers.

    Args:
        as_json: a line of JSON for each, instead of the text as it comes.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self._terminal = sys.stdout.isatty()
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self._colors = self._terminal and not plain

    def show(self, stream: Stream, *, stats: bool) -> Reply:
        """Print an answer as it is generated; return it.

        Why an answer that is not complete ended, and with `stats` its tokens and speed, go to
        standard error.
        """
        if self._json:
            reply = stream.read()
            print(json.dumps(as_record(reply), ensure_ascii=False), flush=True)
        else:
            self._print(stream)
            reply = stream.reply
        if stats:
            print(stats_line(reply), file=sys.stderr)
        elif self._terminal or reply.stop_reason == "context":
            note = _NOTES.get(reply.stop_reason, "")
            if note:
                print(note.format(tokens=reply.usage.completion_tokens), file=sys.stderr)
        return reply

    def _print(self, chunks: Iterable[Chunk]) -> None:
        thinking = False
        for chunk in chunks:
            if chunk.reasoning and self._terminal:
                if not thinking:
                    print(_DIM if self._colors else "(thinking) ", end="")
                thinking = True
                print(chunk.reasoning, end="", flush=True)
            if thinking and (chunk.text or chunk.tool_calls or chunk.stop_reason):
                print(_PLAIN if self._colors else "", end="\n\n")
                thinking = False
            print(chunk.text, end="", flush=True)
            for call in chunk.tool_calls:
                print(json.dumps({"name": call.name, "arguments": call.parsed()}))
        print()


def as_record(reply: Reply) -> dict[str, Any]:
    """An answer as `--json` prints it."""
    timings = reply.timings
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "tool_calls": [call.message_part() for call in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        "stop_reason": reply.stop_reason,
        "usage": {**asdict(reply.usage), "total_tokens": reply.usage.total_tokens},
        "timings": {**asdict(timings), "tokens_per_second": timings.tokens_per_second},
    }


def stats_line(reply: Reply) -> str:
    """Tokens and speed of an answer."""
    usage, timings = reply.usage, reply.timings
    if not usage.completion_tokens:
        return f"{usage.prompt_tokens} prompt tokens, nothing generated"
    speed = timings.tokens_per_second
    rate = "no decoding" if speed is None else f"{speed:.1f} tokens/s"
    drafted = f", {timings.accepted} of {timings.drafted} drafted" if timings.drafted else ""
    return (
        f"{usage.prompt_tokens} prompt tokens, first token after {timings.first_token_ms:.0f} ms, "
        f"{usage.completion_tokens} generated{drafted}, {rate}, stop reason: {reply.stop_reason}"
    )
