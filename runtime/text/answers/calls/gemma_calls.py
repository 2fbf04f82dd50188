"""Calls as Gemma writes them: `call:get_weather{city:<|"|>Paris<|"|>,days:3}`.

FunctionGemma has `<escape>` around texts, Gemma 4 `<|"|>`. Keys have no quotes, inner ones may.
"""

import json
import re
from typing import Any

from edgelm.runtime.text.answers.calls.tool_call import ToolCall, tool_call

_QUOTES = ('<|"|>', "<escape>")
_START = re.compile(r"\s*(?:call:)?\s*([\w.-]+)\s*(?=\{)")
_BARE = re.compile(r"[^,\]}]*")
_KEY = re.compile(r"\s*([^:,{}\[\]]+?)\s*:")
_MAX_DEPTH = 50


def read_gemma_calls(body: str) -> list[ToolCall]:
    """Read one call, or several in a row.

    Raises:
        ValueError: something else.
    """
    calls, at = [], 0
    while body[at:].strip():
        start = _START.match(body, at)
        if start is None:
            raise ValueError("no call")
        arguments, at = _Reader(body).value(start.end(), 0)
        calls.append(tool_call(start[1], arguments))
    if not calls:
        raise ValueError("no call")
    return calls


class _Reader:
    """Reads values of one text; each method returns a value and where it ends."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        at = self._skip(at)
        if self._text.startswith("{", at):
            return self._object(at + 1, depth)
        if self._text.startswith("[", at):
            return self._list(at + 1, depth)
        quoted = self._quoted(at)
        if quoted is not None:
            return quoted
        bare = _BARE.match(self._text, at)
        assert bare is not None  # it may be empty
        return _bare_value(bare[0].strip()), bare.end()

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        while not self._text.startswith("}", self._skip(at)):
            key, at = self._key(self._skip(at))
            result[key], at = self.value(at, depth + 1)
            at = self._separator(at, "}")
        return result, self._skip(at) + 1

    def _list(self, at: int, depth: int) -> tuple[list[Any], int]:
        result: list[Any] = []
        while not self._text.startswith("]", self._skip(at)):
            item, at = self.value(at, depth + 1)
            result.append(item)
            at = self._separator(at, "]")
        return result, self._skip(at) + 1

    def _key(self, at: int) -> tuple[str, int]:
        quoted = self._quoted(at)
        if quoted is not None and self._text.startswith(":", self._skip(quoted[1])):
            return quoted[0], self._skip(quoted[1]) + 1
        bare = _KEY.match(self._text, at)
        if bare is None:
            raise ValueError("no key")
        return bare[1].strip('"'), bare.end()

    def _quoted(self, at: int) -> tuple[str, int] | None:
        for quote in _QUOTES:
            if self._text.startswith(quote, at):
                end = self._text.find(quote, at + len(quote))
                if end < 0:
                    raise ValueError("a text without an end")
                return self._text[at + len(quote) : end], end + len(quote)
        return None

    def _separator(self, at: int, end: str) -> int:
        at = self._skip(at)
        if self._text.startswith(",", at):
            return at + 1
        if self._text.startswith(end, at):
            return at
        raise ValueError("no end")

    def _skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        return at


def _bare_value(text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return text
    return value
