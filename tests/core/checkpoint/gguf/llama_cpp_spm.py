"""SentencePiece tokenization written from llama.cpp's description, slow and plain: the reference.

Neighbors whose joined text is a token are merged, the highest score first, the leftmost of equals;
what is no token in the end becomes its bytes. Control and user-defined tokens are cut out before.
"""

from collections.abc import Sequence
from itertools import pairwise


def encode(
    text: str,
    tokens: Sequence[str],
    scores: Sequence[float],
    cut_out: Sequence[str] = (),
    *,
    space_prefix: bool,
) -> list[int]:
    """Token ids of a text, without BOS."""
    ids = {token: index for index, token in enumerate(tokens)}
    fragments: list[str | int] = [text] if text else []
    for token in sorted(cut_out, key=len, reverse=True):
        fragments = [piece for part in fragments for piece in _cut(part, token, ids[token])]
    found: list[int] = []
    for part in fragments:
        if isinstance(part, int):
            found.append(part)
        else:
            escaped = (" " * space_prefix + part).replace(" ", "\u2581")
            found += _merge(escaped, ids, scores)
    return found


def _cut(part: str | int, token: str, index: int) -> list[str | int]:
    if isinstance(part, int) or token not in part:
        return [part]
    pieces: list[str | int] = []
    for number, piece in enumerate(part.split(token)):
        pieces += [index] * (number > 0) + [piece] * (piece != "")
    return pieces


def _merge(text: str, ids: dict[str, int], scores: Sequence[float]) -> list[int]:
    symbols = list(text)
    while True:
        joined = [left + right for left, right in pairwise(symbols)]
        known = [(-scores[ids[text]], at) for at, text in enumerate(joined) if text in ids]
        if not known:
            break
        _, at = min(known)
        symbols[at : at + 2] = [joined[at]]
    found: list[int] = []
    for symbol in symbols:
        if symbol in ids:
            found.append(ids[symbol])
        else:
            found += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found
