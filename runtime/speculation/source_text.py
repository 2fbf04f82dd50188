"""Where the values of an answer were copied from, and where the next one may be copied from."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgelm.runtime.speculation.json_values import JsonValue

_CONTEXT = 32  # characters before and behind a value that are compared
_MAX_LENGTH = 300  # characters of a value
_REACH = 4000  # characters behind the last value in which the next one is looked for
_MAX_PLACES = 256  # where a text occurs in the prompt: short ones occur everywhere
_MAX_BACK = 256  # values before one, among which its model is looked for
_PARTS = re.compile(r"\w+|[^\w\s]|\s")
# The next word of a list of keys.
# Their runs are bounded: a regular expression would try all parts of a long one.
_NEXT_WORD = re.compile(r"(?:[^\w\n]{0,20}[,;|\n:][^\w]{0,20}|\s+\w{1,3}\s+)(\w+)")
_SENTENCE = re.compile(r"(?:[.!?][\"')]*\s{1,20}|\n\s{0,20})(?=\w)")
_END = re.compile(r"[\n;()\"]|[,.:](?=\s|$)| - ")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


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
        lower = text.lower()
        self._lower = lower if len(lower) == len(text) else text  # some letters become two
        self._labeled: dict[str, Span | None] = {}
        self._words: dict[str, str | None] = {}

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
        """Where a value is if the prompt continues as it did around its model."""
        source = values[model].source
        if source is None:
            return None
        floor = self._floor(values, number, model)
        start = self._start_like(values, model, source, floor)
        if start is None:
            return None
        return self._span(start, values[number].quoted, source)

    def begun(
        self, values: Sequence[JsonValue], number: int, model: int | None, beginning: str
    ) -> Span | None:
        """A part of the prompt with this beginning."""
        if not beginning or not beginning[0].isalnum():
            return None
        floor = self._floor(values, number, model)
        for start in (floor, 0) if floor else (0,):
            for position in self._occurrences(beginning, start):
                source = None if model is None else values[model].source
                return self._span(position, values[number].quoted, source, len(beginning))
        return None

    def labeled(self, key: str) -> Span | None:
        """What is behind a key's words and a colon."""
        if key not in self._labeled:
            self._labeled[key] = self._find_labeled(key)
        return self._labeled[key]

    def word_after(self, key: str) -> str | None:
        """The word behind a key in a list of keys."""
        if not key:
            return None
        if key not in self._words:
            ends = (at + len(key) for at in self._occurrences(key, 0))
            end = next((end for end in ends if not self.text[end : end + 1].isalnum()), None)
            word = None if end is None else _NEXT_WORD.match(self.text, end)
            self._words[key] = None if word is None else word.group(1)
        return self._words[key]

    def _find_labeled(self, key: str) -> Span | None:
        words = [re.escape(word) for word in re.findall(r"[^\W_]+", key.lower())]
        if not words:
            return None
        name = "[ _-]?".join(words)
        label = re.compile(rf"(?<!\w){name}[\"'*`]*[ \t]*[:=][ \t]*(?=\S)")
        start = -1
        for _ in range(_MAX_PLACES):  # a regular expression without a fixed beginning is slow
            start = self._lower.find(words[0], start + 1)
            if start < 0:
                break
            found = label.match(self._lower, start)
            if found is not None:
                return self._span(found.end(), True, None)
        return None

    def _occurrences(self, text: str, start: int) -> Iterator[int]:
        """Where words of the prompt begin with `text`."""
        position = start - 1
        for _ in range(_MAX_PLACES):
            position = self.text.find(text, position + 1)
            if position < 0:
                return
            if position == 0 or not (self.text[position - 1].isalnum() and text[0].isalnum()):
                yield position

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
        if left[-1:] not in ("", "\n"):
            return None
        sentence = _SENTENCE.search(text, floor, floor + _REACH)
        return None if sentence is None else sentence.end()

    def _span(
        self, start: int, quoted: bool, source: tuple[int, int] | None, least: int = 1
    ) -> Span | None:
        """From `start` to where a value ends, as the one with that source did."""
        text = self.text
        if not quoted:
            number = NUMBER.match(text, start, start + _MAX_LENGTH)
            return None if number is None else Span(*number.span())
        limit = start + _MAX_LENGTH
        ending = _END.search(text, start + least, limit)
        end = min(len(text), limit) if ending is None else ending.start()
        if source is not None:
            right = text[source[1] : source[1] + _CONTEXT]
            for part in reversed(list(_PARTS.finditer(right))):
                found = text.find(right[: part.end()], start + least, limit)
                if found >= 0:
                    end = found if part.start() else min(found, end)
                    break
        return Span(start, end) if end > start else None


def earlier(number: int) -> Iterator[int]:
    """Numbers of the values before that one, the last first, as far back as is looked."""
    return reversed(range(max(0, number - _MAX_BACK), number))


def model_of(values: Sequence[JsonValue], number: int) -> int | None:
    """The last value before that number that has its key."""
    key = values[number].key
    return next((n for n in earlier(number) if values[n].key == key), None)


def source_before(values: Sequence[JsonValue], number: int) -> tuple[int, int] | None:
    """The source of the last value before that number that has one."""
    sources = (values[n].source for n in earlier(number))
    return next((source for source in sources if source is not None), None)
