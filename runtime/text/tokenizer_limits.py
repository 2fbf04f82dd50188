"""Limits of a tokenizer.json, checked before the library reads it.

The library is native code that trusts such a file: a wrong length makes it
allocate until the process is aborted, and a few rules that double the text, one after the other,
fill any memory. No published tokenizer comes near these limits.
"""

import base64
import binascii
import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from edgelm.errors import BadBundle
from edgelm.files.json_files import shown, value_count

MAX_BYTES = 256 * 2**20  # Gemma 3's has 33 MB
MAX_VALUES = 8_000_000  # Gemma 3's has 2 million
_MAX_GROWTH = 256  # of a text; NFKC's longest expansion is 18 characters for one
_MAX_ADDED_TOKENS = 1000  # that a template puts around a text
_MAX_STEPS = 1000  # of a pipeline
_MAX_ID = 2**24 - 1  # the most that a configuration may have
_MAX_PIECE = 4096  # characters; the library keeps up to 340 bytes for each in its search trees
_MAX_ADDED_CHARACTERS = 2**20  # of all added tokens; Gemma 3's 6,415 have 64 thousand
T = TypeVar("T")
_NESTED = ("normalizers", "decoders", "pretokenizers", "processors")


def check_values(data: bytes) -> None:
    """Raise BadBundle for a file whose number of values would exhaust the memory."""
    if (count := value_count(data)) > MAX_VALUES:
        raise BadBundle(f"it has about {count:,} values, expected at most {MAX_VALUES:,}")


def check_pipeline(name: str, component: Any) -> None:
    """Raise BadBundle for a normalizer, decoder or post-processor that multiplies its input."""
    growth = 1.0
    for number, step in enumerate(_steps(component)):
        growth *= _growth(step)
        if growth > _MAX_GROWTH or number >= _MAX_STEPS:
            raise BadBundle(
                f"its {name} makes a text more than {_MAX_GROWTH} times as long, or has more than "
                f"{_MAX_STEPS} steps"
            )


def check_ids(added_tokens: msgspec.Raw, model: msgspec.Raw) -> None:
    """Raise BadBundle if two tokens of the vocabulary have one id, or one a very large id.

    Of two tokens the library keeps either, another one each time that it opens the file, so that
    the same ids would decode to different texts. Tables of all ids are as long as the largest.
    """
    for added in _decoded(added_tokens, list[_AddedToken]):
        _check_id(added.content, added.id)
    try:
        ids = msgspec.json.decode(model, type=_Model).vocab
    except msgspec.ValidationError:  # a list of pieces, whose places are their ids; or damaged
        return
    if ids:
        _check_id(*max(ids.items(), key=lambda item: item[1]))
    if len(set(ids.values())) == len(ids):
        return
    first: dict[int, str] = {}
    for token, number in ids.items():
        if (other := first.setdefault(number, token)) != token:
            raise BadBundle(
                f"its vocabulary gives {shown(other)} and {shown(token)} the same id {number}, "
                "expected an id of its own for each"
            )


def _check_id(token: str, number: int) -> None:
    if number > _MAX_ID:
        raise BadBundle(f"its token {shown(token)} has the id {number}, expected at most {_MAX_ID}")


def check_pieces(added_tokens: msgspec.Raw, model: msgspec.Raw) -> None:
    """Raise BadBundle for tokens whose search trees would exhaust the memory or the stack.

    Added tokens are found by an automaton, and a Unigram vocabulary by a trie that is freed by
    recursion: each has a node per character. Other vocabularies are hash tables, of any length.
    """
    contents = [token.content for token in _decoded(added_tokens, list[_AddedToken])]
    pieces = [piece for piece, _ in _decoded(model, _Unigram).vocab]
    longest = max([*contents, *pieces], key=len, default="")
    if len(longest) > _MAX_PIECE:
        raise BadBundle(
            f"its token {shown(longest)} has {len(longest)} characters, expected at most "
            f"{_MAX_PIECE}"
        )
    if (total := sum(map(len, contents))) > _MAX_ADDED_CHARACTERS:
        raise BadBundle(
            f"its added tokens have {total} characters, expected at most {_MAX_ADDED_CHARACTERS}"
        )


def _decoded(raw: msgspec.Raw, kind: type[T]) -> T:
    """The value of this type; an empty one where it has another, which the library refuses."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        return kind()


class _Model(msgspec.Struct):
    vocab: dict[str, int]


class _AddedToken(msgspec.Struct):
    content: str
    id: int = 0


class _Unigram(msgspec.Struct):
    vocab: list[tuple[str, float]] = []


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    pending = [component]
    while pending:
        step = pending.pop()
        if isinstance(step, dict):
            yield step
            for key in _NESTED:
                nested = step.get(key)
                pending += nested if isinstance(nested, list) else []


def _growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        return _replace_growth(step.get("pattern"), step.get("content"))
    if kind == "Precompiled":
        return _charsmap_growth(step.get("precompiled_charsmap"))
    if kind == "Prepend":
        return max(1.0, len(str(step.get("prepend", ""))) / 16)
    if kind == "TemplateProcessing":
        return _template_growth(step)
    return 1.0


def _replace_growth(pattern: Any, content: Any) -> float:
    added = len(content) if isinstance(content, str) else 0
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str):
        return max(1.0, added / max(1, len(literal)))
    return 1.0 + added  # a regular expression may match between any two characters


def _charsmap_growth(encoded: Any) -> float:
    """Check SentencePiece's table of replacements, and return the length of its longest."""
    if not encoded:
        return 1.0
    try:
        table = base64.b64decode(encoded, validate=True)
        (size,) = struct.unpack_from("<I", table)
    except (binascii.Error, struct.error, TypeError, ValueError):
        raise BadBundle("its precompiled_charsmap is damaged") from None
    replacements = table[4 + size :]
    if size % 4 or size == 0 or 4 + size > len(table):
        raise BadBundle(
            f"its precompiled_charsmap is damaged: a trie of {size} bytes in {len(table)}"
        )
    return float(max(1, max(len(text) for text in replacements.split(b"\0"))))


def _template_growth(step: dict[str, Any]) -> float:
    lengths = {
        name: len(_items(special.get("ids")))
        for name, special in _fields(step.get("special_tokens")).items()
        if isinstance(special, dict)
    }
    texts, added = 0, 0
    for piece in _items(step.get("single")):
        token = _fields(piece).get("SpecialToken")
        if isinstance(token, dict):
            added += lengths.get(str(token.get("id")), 0)
        else:
            texts += 1
    if added > _MAX_ADDED_TOKENS:
        raise BadBundle(f"its post_processor puts {added} tokens around a text")
    return float(max(1, texts))


def _items(value: Any) -> list[Any]:
    """A list, or none: the library refuses another type with an error of its own."""
    return value if isinstance(value, list) else []


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
