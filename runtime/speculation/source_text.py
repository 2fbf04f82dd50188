"""Where the values of an answer were copied from, and where the next one may be copied from."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgelm.runtime.speculation.json_values import JsonValue

_CONTEXT = 32  # characters before and behind a value that are compared
_MAX_LENGTH = 300  # characters of a value
_REACH = 4000  # characters behind the last value in which the next one is looked for
_PARTS = re.compile(r"\w+|[^\w\s]|\s")
_END = re.compile(r"[\n;()\"]|[,.:](?=\s|$)| - ")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Span(NamedTuple):
    """A part of the prompt."""

    start: int
    end: int


class SourceText:
    """The prompt, as the source of values.

    Args:
        text: of the prompt.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def locate(self, values: Sequence[JsonValue], number: int) -> Span | None:
        """Where the value with this number, which has ended, is in the prompt."""
        value = values[number]
        if not value.text or not (value.quoted or value.text[-1].isdigit()):
            return None
        model = model_of(values, number)
        floor = self._floor(values, number, model)
        for start in (floor, 0) if floor else (0,):
            for position in self._occurrences(value.text, start):
                end = position + len(value.text)
                if not self.text[end : end + 1].isalnum():
                    return Span(position, end)
        return None

    def like(self, values: Sequence[JsonValue], number: int, model: int) -> Span | None:
        """Where a value is if the prompt goes on as it did around its model."""
        source = values[model].source
        if source is None:
            return None
        floor = self._floor(values, number, model)
        start = self._start_like(values, model, source, floor)
        if start is None:
            return None
        return self._span(start, values[model], source)

    def begun(
        self, values: Sequence[JsonValue], number: int, model: int | None, beginning: str
    ) -> Span | None:
        """A part of the prompt with this beginning."""
        if not beginning or not beginning[0].isalnum():
            return None
        floor = self._floor(values, number, model)
        for start in (floor, 0) if floor else (0,):
            for position in self._occurrences(beginning, start):
                like = None if model is None else values[model]
                return self._span(
                    position, like, None if like is None else like.source, len(beginning)
                )
        return None

    def labeled(self, key: str) -> Span | None:
        """What is behind a key's words and a colon."""
        words = [re.escape(word) for word in re.findall(r"[^\W_]+", key)]
        if not words:
            return None
        label = re.compile(
            rf"(?<!\w){'[ _-]?'.join(words)}[\"'*`]*[ \t]*[:=][ \t]*(?=\S)", re.IGNORECASE
        )
        found = label.search(self.text)
        if found is None:
            return None
        return self._span(found.end(), None, None)

    def _occurrences(self, text: str, start: int) -> Iterator[int]:
        """Where words of the prompt begin with `text`."""
        position = self.text.find(text, start)
        while position >= 0:
            if position == 0 or not (self.text[position - 1].isalnum() and text[0].isalnum()):
                yield position
            position = self.text.find(text, position + 1)

    def _floor(self, values: Sequence[JsonValue], number: int, model: int | None) -> int:
        """Where to begin looking for a value: behind the last one, if its model was there, too."""
        last = source_before(values, number)
        if model is None or (of_model := values[model].source) is None:
            return 0 if last is None else last[1]
        if last is None:
            return of_model[1]
        before = source_before(values, model)
        if before is None:
            return max(of_model[1], last[1])
        return last[1] if before[1] <= of_model[0] else of_model[1]

    def _start_like(
        self, values: Sequence[JsonValue], model: int, source: tuple[int, int], floor: int
    ) -> int | None:
        text, start = self.text, source[0]
        before = source_before(values, model)
        if before is not None and 0 < start - before[1] <= _CONTEXT:
            between = text[before[1] : start]
            if text.startswith(between, floor):
                return floor + len(between)
        left = text[max(0, start - _CONTEXT) : start]
        for part in _PARTS.finditer(left):
            context = left[part.start() :]
            if context == " " or (part.start() == 0 and start > _CONTEXT):
                continue  # a word that is cut off, or nothing that tells where
            found = text.find(context, floor, floor + _REACH)
            if found >= 0:
                return found + len(context)
        return None

    def _span(
        self,
        start: int,
        like: JsonValue | None,
        source: tuple[int, int] | None,
        least: int = 1,
    ) -> Span | None:
        """From `start` to where a value like that one ends."""
        text = self.text
        if like is not None and not like.quoted:
            number = _NUMBER.match(text, start)
            return None if number is None else Span(*number.span())
        limit = start + _MAX_LENGTH
        if source is not None:
            right = text[source[1] : source[1] + _CONTEXT]
            for part in reversed(list(_PARTS.finditer(right))):
                found = text.find(right[: part.end()], start + least, limit)
                if found >= 0:
                    return Span(start, found)
        end = _END.search(text, start + least, limit)
        stop = min(len(text), limit) if end is None else end.start()
        return Span(start, stop) if stop > start else None


def model_of(values: Sequence[JsonValue], number: int) -> int | None:
    """The last value before that number that has its key."""
    key = values[number].key
    return next((n for n in reversed(range(number)) if values[n].key == key), None)


def source_before(values: Sequence[JsonValue], number: int) -> tuple[int, int] | None:
    """The source of the last value before that number that has one."""
    sources = (values[n].source for n in reversed(range(number)))
    return next((source for source in sources if source is not None), None)
