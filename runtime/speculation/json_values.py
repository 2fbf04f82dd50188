"""The values of a JSON text that is being written, in the order in which they are written."""

from dataclasses import dataclass, field, replace
from typing import Literal

_SPACE = " \n\t\r"
_LITERAL = "+-.0123456789aeflnrstuE"  # of numbers, true, false and null
_MAX_DEPTH = 64  # containers within each other; a text with more is hardly JSON
_Expected = Literal["key", "colon", "value", "comma"]


@dataclass(slots=True)
class JsonValue:
    """A string, number or literal. Positions are in the text that was read.

    `text` are the characters as written, without quotation marks. `end` is None while it is open.
    `source` is where the same text is in the prompt, once that was looked up.
    """

    key: str
    start: int
    quoted: bool
    end: int | None = None
    text: str = ""
    source: tuple[int, int] | None = None


@dataclass(slots=True)
class _Container:
    is_object: bool
    key: str  # of the value that is being written; for lists that of the list


@dataclass(slots=True)
class JsonValues:
    """Reads a text as it grows; text around JSON is skipped.

    `values` are those of the JSON text that is being written, the last may be open. `key_start` is
    where an open key begins.
    """

    text: str = ""
    values: list[JsonValue] = field(default_factory=list)
    key_start: int | None = None
    _stack: list[_Container] = field(default_factory=list)
    _expected: _Expected = "value"
    _escaped: bool = False

    @property
    def open_value(self) -> JsonValue | None:
        """The value that is being written."""
        return self.values[-1] if self.values and self.values[-1].end is None else None

    @property
    def inside(self) -> bool:
        """Whether an object or list is open."""
        return bool(self._stack)

    @property
    def expects_colon(self) -> bool:
        """Whether a key has ended and its colon is to come."""
        return bool(self._stack) and self._expected == "colon"

    @property
    def next_key(self) -> str | None:
        """The key of a value that may begin here; None where none may."""
        return self._stack[-1].key if self._stack and self._expected == "value" else None

    def copy(self) -> "JsonValues":
        """One that is read on independently; values that ended are shared."""
        return replace(
            self,
            values=[*self.values[:-1], *(replace(value) for value in self.values[-1:])],
            _stack=[replace(container) for container in self._stack],
        )

    def push(self, text: str) -> list[JsonValue]:
        """Read on; return the values that ended."""
        ended: list[JsonValue] = []
        start = len(self.text)
        self.text += text
        for position, character in enumerate(text, start):
            value = self._read(character, position)
            if value is not None:
                ended.append(value)
        return ended

    def _read(self, character: str, position: int) -> JsonValue | None:
        value = self.open_value
        if not self._stack:
            if character in "{[":
                self._open(character, "")
            return None
        if self.key_start is not None:
            if self._ends_string(character):
                self._stack[-1].key = self.text[self.key_start : position]
                self.key_start, self._expected = None, "colon"
            return None
        if value is None:
            self._structure(character, position)
            return None
        if value.quoted:
            return self._end(value, position) if self._ends_string(character) else None
        if character in _LITERAL:
            return None
        self._end(value, position)
        self._structure(character, position)
        return value

    def _ends_string(self, character: str) -> bool:
        if self._escaped or character == "\\":
            self._escaped = not self._escaped
            return False
        return character == '"'

    def _end(self, value: JsonValue, position: int) -> JsonValue:
        value.end, value.text = position, self.text[value.start : position]
        self._expected = "comma"
        return value

    def _structure(self, character: str, position: int) -> None:
        top = self._stack[-1]
        if character in _SPACE:
            return
        if character == "}" if top.is_object else character == "]":
            self._stack.pop()
            self._expected = "comma"
        elif self._expected == "comma" and character == ",":
            self._expected = "key" if top.is_object else "value"
        elif self._expected == "key" and character == '"':
            self.key_start = position + 1
        elif self._expected == "colon" and character == ":":
            self._expected = "value"
        elif self._expected == "value" and character in "{[" and len(self._stack) < _MAX_DEPTH:
            self._open(character, top.key)
        elif self._expected == "value" and (character == '"' or character in _LITERAL):
            quoted = character == '"'
            self.values.append(JsonValue(top.key, position + quoted, quoted))
        else:
            self._forget(character)

    def _open(self, character: str, key: str) -> None:
        if not self._stack:
            self.values.clear()
        is_object = character == "{"
        self._stack.append(_Container(is_object, key if is_object else f"{key}[]"))
        self._expected = "key" if is_object else "value"

    def _forget(self, character: str) -> None:
        """It is not JSON; `character` may begin some."""
        self._stack.clear()
        self.values.clear()
        if character in "{[":
            self._open(character, "")
