"""What a JSON answer that extracts data from its prompt is likely to continue with.

A value was copied from the prompt, but as other tokens than there: behind a quotation mark in place
of a space. And the records of a list resemble each other in the answer as well as in the prompt. So
the text between two values is taken from the last record, and a value is looked for where it would
be if the prompt described this record as it did the last one: behind the same words, up to the same
words.
"""

import re

from edgelm.runtime.speculation.json_values import JsonValue, JsonValues
from edgelm.runtime.speculation.source_text import NUMBER, SourceText, Span, earlier, model_of

_MAX_PIECES = 40
# The part of a text between two values that brings a key.
_KEY = re.compile(r'[\[{,](\s*)"[^"\n]*"(:\s*)"?$')
# The beginning of a list of records.
_FIRST_RECORD = re.compile(r'\[(\s*)(\{\s*"[^"\n]*":\s*"?)')
_RECENT = 8  # values whose keys show how the answer is laid out


class Extraction:
    """Predictions for one answer.

    Args:
        prompt: its text.
    """

    def __init__(self, prompt: str) -> None:
        self.source = SourceText(prompt)
        self.answer = JsonValues()

    def push(self, text: str) -> None:
        """Read more of the answer."""
        self._read(self.answer, text)

    def predict(self, least: int, forced: str = "") -> tuple[str, bool]:
        """Text that may follow, of `least` characters if it reaches that far; and how sure it is.

        `forced` is what has to follow at first.

        Returns:
            the text, empty where nothing is predicted, and whether it follows an earlier record.
        """
        if not self.answer.inside:
            return forced, False
        ahead = self.answer.copy()
        begin = len(ahead.text)
        self._read(ahead, forced)
        modeled, piece = True, ""
        for number in range(_MAX_PIECES):
            last, (piece, known) = piece, self._piece(ahead)
            if not piece:
                end = last.find("}") + 1
                if end:  # the prompt seems to have no other record
                    return ahead.text[begin : len(ahead.text) - len(last) + end], modeled
                break
            if not number:
                modeled = known
            self._read(ahead, piece)
            if len(ahead.text) - begin >= least or not ahead.inside:
                break
        return ahead.text[begin:], modeled

    def _read(self, answer: JsonValues, text: str) -> None:
        before = len(answer.values)
        if answer.push(text):
            for number in range(max(0, before - 1), len(answer.values)):
                value = answer.values[number]
                if value.end is not None and value.source is None:
                    value.source = self.source.locate(answer.values, number)

    def _piece(self, answer: JsonValues) -> tuple[str, bool]:
        """What may follow up to the next change of kind, and whether an earlier record had it."""
        value = answer.open_value
        if value is not None:
            return self._value(answer, value, answer.text[value.start :])
        if answer.values:
            typed = answer.text[answer.values[-1].end :]
            gap = self._gap(answer, len(answer.values) - 1, typed)
            if gap is not None and len(gap) > len(typed):
                return gap[len(typed) :], True
            if gap is None and "}" in typed:
                rest = self._next_record(answer, typed.partition("}")[2])
                if rest:
                    return rest, True
            elif gap is None and not answer.expects_colon and answer.next_key is None:
                return self._next_key(answer, typed), False
        if answer.next_key is None:
            return (":" if answer.expects_colon else ""), False
        return self._begin(answer, answer.next_key)

    def _gap(self, answer: JsonValues, number: int, typed: str) -> str | None:
        """The text that followed an earlier value with the key of this one."""
        values, text = answer.values, answer.text
        key = values[number].key
        for n in earlier(number):
            if values[n].key == key:
                gap = text[values[n].end : values[n + 1].start]
                if gap.startswith(typed):
                    return gap
        return None

    def _begin(self, answer: JsonValues, key: str) -> tuple[str, bool]:
        """A value that may begin here: an unquoted one, or one whose key is new."""
        space = " " if answer.text.endswith(":") else ""
        new = JsonValue(key, len(answer.text), quoted=False)
        model = model_of([*answer.values, new], len(answer.values))
        if model is not None:
            if answer.values[model].quoted:
                return f'{space}"', True
            text, known = self._value(answer, new, "")
            return (space + text if text else ""), known
        span = self.source.labeled(key)
        if span is None:
            return f'{space}"', False
        number = NUMBER.match(self.source.text, *span)
        if number is not None and not self.source.text[number.end()].isalnum():
            return space + number.group(), False
        return f'{space}"{self._text(span)}"', False

    def _next_record(self, answer: JsonValues, typed: str) -> str:
        """What is behind a first record and brings the first key of the next one."""
        found = _FIRST_RECORD.finditer(answer.text)
        first = max(found, key=lambda one: one.start(), default=None)
        if first is None:
            return ""
        gap = f",{first.group(1) or ' '}{first.group(2)}"
        return gap[len(typed) :] if gap.startswith(typed) else ""

    def _value(self, answer: JsonValues, value: JsonValue, typed: str) -> tuple[str, bool]:
        """The rest of a value with what ends it."""
        values = answer.values if value is answer.open_value else [*answer.values, value]
        number = len(values) - 1
        model = model_of(values, number)
        text, known = self._candidate(values, number, model, typed)
        if text is None:
            return "", False
        rest = text[len(typed) :]
        if value.quoted:
            return rest + '"', known
        gap = None
        if model is not None:
            gap = answer.text[values[model].end : values[model + 1].start]
        return rest + (gap or ","), known

    def _candidate(
        self, values: list[JsonValue], number: int, model: int | None, typed: str
    ) -> tuple[str | None, bool]:
        value = values[number]
        if model is not None:
            text = self._text(self.source.like(values, number, model))
            if text and text.startswith(typed):
                return text, True
            if values[model].source is None or self._repeats(values, model):
                text = values[model].text
                if text.startswith(typed):
                    return text, True
        elif not typed:
            text = self._text(self.source.labeled(value.key))
            if text:
                return text, False
        return self._text(self.source.begun(values, number, model, typed)), False

    def _repeats(self, values: list[JsonValue], model: int) -> bool:
        before = model_of(values, model)
        return before is not None and values[before].text == values[model].text

    def _text(self, span: Span | None) -> str | None:
        """The text of a part of the prompt, up to what JSON would escape."""
        if span is None:
            return None
        return re.split(r"[\"\\\n]", self.source.text[span.start : span.end], maxsplit=1)[0]

    def _next_key(self, answer: JsonValues, typed: str) -> str:
        """What brings the next key, if the prompt lists keys in the order of the answer."""
        last, text = answer.values[-1], answer.text
        word = self.source.word_after(last.key)
        if word is None:
            return ""
        ends = [None, *(value.end for value in answer.values[:-1])]
        starts = [value.start for value in answer.values]
        for end, start in reversed(list(zip(ends, starts, strict=True))[-_RECENT:]):
            brought = _KEY.search(text, end or 0, start)
            if brought is not None and (end is None or "," in brought.group()):
                quote = '"' if last.quoted else ""
                between = brought.group(1)
                if end is None and not between and brought.group(2).endswith(" "):
                    between = " "  # nothing stands before the first key, but before others
                gap = f'{quote},{between}"{word}":'
                return gap[len(typed) :] if gap.startswith(typed) else ""
        return ""
