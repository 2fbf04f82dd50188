"""Parts of Lark rules, as llguidance reads them."""

import json
import re
from collections.abc import Mapping
from typing import Any

_WHITE_SPACE = r"\x20|\n[\x20\t]{0,40}"


class RuleWriter:
    """Writes the parts of rules; `lines` are rules that were needed on the way.

    Args:
        control: ids of the control tokens by their text; to a grammar they are no text.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self._control = control
        names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
        self._pattern = re.compile(f"({names})" if names else "(?!)")

    def literal(self, text: str) -> str:
        """A text with control tokens."""
        return " ".join(
            f"<[{self._control[piece]}]>" if piece in self._control else json.dumps(piece)
            for piece in self._pattern.split(text)
            if piece
        )

    def json(self, schema: Mapping[str, Any] | bool, *, strict: bool = False) -> str:
        """A JSON value."""
        options = {"whitespace_pattern": _WHITE_SPACE, "lenient": not strict}
        given = {} if isinstance(schema, bool) else dict(schema)
        return f"%json {json.dumps({**given, 'x-guidance': options})}"

    def until(self, end: str, repeat: str) -> str:
        """A text that reaches to the first `end`, with it; `repeat` as in `.{1,9}`."""
        return self._rule(f"[suffix={json.dumps(end)}]: /(?s:.{repeat})/")

    def _rule(self, rest: str) -> str:
        name = f"part_{len(self.lines)}"
        self.lines.append(name + rest)
        return name
