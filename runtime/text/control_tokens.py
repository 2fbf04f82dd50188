"""Control tokens in what a user wrote: `<|im_end|>` in a message is text, not the end of a turn.

Control tokens in a conversation are put between two marks before the template runs. What it writes
is cut at the marks, and what stood between them is encoded as plain text; the template's own
control tokens have no marks. transformers' `sanitize_control_tokens` works this way.

Guaranteed: no control token, nor one that is joined from the ends of two texts, is encoded from
the texts of a conversation. Not covered: the names of fields, and tokens that a template itself
builds from parts of a text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgelm.errors import BadInput
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.text.tokenizer import Tokenizer

# Noncharacters: Unicode keeps them for a program's own use, no text has them.
_START, _END = "\ufdd0", "\ufdd1"
_LONG = 64  # characters; published control tokens are shorter


class ControlTokens:
    """Finds a model's control tokens in conversations.

    Args:
        tokenizer: its special tokens are control tokens.
        template: the chat template's text; added tokens that it writes are control tokens, too.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        self._ids = {
            token.content: number
            for number, token in tokenizer.added_tokens().items()
            if token.content and (token.special or token.content in template)
        }
        longest_first = sorted(self._ids, key=len, reverse=True)
        found = "|".join(map(re.escape, longest_first)) or "(?!)"
        short = [name for name in self._ids if len(name) <= _LONG]
        self._beginnings = _by_character((name[:n] for name in short for n in _inner(name)), -1)
        self._endings = _by_character((name[n:] for name in short for n in _inner(name)), 0)
        self._has_long = len(short) < len(self._ids)
        self._control = re.compile(found)
        self._marks = re.compile(f"{_START}({found}){_END}|[{_START}{_END}]")

    def mark(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The conversation with marks around the control tokens in its texts."""
        return [
            {key: value if key == "role" else self._marked(value) for key, value in message.items()}
            for message in messages
        ]

    def mark_values(self, value: Any) -> Any:
        """The same for other values that a template is given, such as tools."""
        return self._marked(value)

    def encode(self, text: str) -> Tokens:
        """Token ids of what the template wrote of a marked conversation.

        Raises:
            BadInput: the tokenizer makes a control token of plain text as well.
        """
        # Alternating text and control token; None for a mark without its partner.
        pieces = self._marks.split(text)
        parts = [self._tokenizer.encode(pieces[0], special=False)]
        for at, piece in enumerate(pieces[1:], start=1):
            if piece:
                parts.append(self._inner(piece) if at % 2 == 0 else self._as_text(piece))
        return np.concatenate(parts)

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, Mapping):
            return {key: self._marked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(item) for item in value]
        return value

    def _marked_text(self, text: str) -> str:
        text = text.replace(_START, "").replace(_END, "")
        # A mark alone: the end of this text does not join with what the template puts next to it.
        bare = text.strip()
        opens = self._has_long or bare.endswith(self._beginnings.get(bare[-1:], ()))
        closes = self._has_long or bare.startswith(self._endings.get(bare[:1], ()))
        text = self._control.sub(f"{_START}\\g<0>{_END}", text)
        return (_END if closes else "") + text + (_START if opens else "")

    def _as_text(self, piece: str) -> Tokens:
        ids = self._inner(piece, plain=True)
        if self._ids[piece] in ids:
            raise BadInput(
                f"a message holds {piece!r}, which this model's tokenizer encodes only as the "
                "control token; remove it, or allow control tokens in messages"
            )
        return ids

    def _inner(self, piece: str, *, plain: bool = False) -> Tokens:
        """Ids of a piece that does not begin the text.

        After a line break, which is cut off again: at the beginning SentencePiece adds a space.
        """
        lead, ids = self._encode("\n", plain), self._encode("\n" + piece, plain)
        if ids[: len(lead)].tolist() == lead.tolist():
            return ids[len(lead) :]
        return self._encode(piece, plain)

    def _encode(self, text: str, plain: bool) -> Tokens:
        if plain:
            return self._tokenizer.encode_plain(text)
        return self._tokenizer.encode(text, special=False)


def _inner(name: str) -> range:
    """Where a name can be cut into two parts."""
    return range(1, len(name))


def _by_character(parts: Iterable[str], at: int) -> dict[str, tuple[str, ...]]:
    """Texts by their first or last character: a message is compared with few of them."""
    found: dict[str, list[str]] = {}
    for part in dict.fromkeys(parts):
        found.setdefault(part[at], []).append(part)
    return {character: tuple(texts) for character, texts in found.items()}
