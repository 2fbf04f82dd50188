"""The bytes of single tokens, of which a character may need several."""

import json
import re
from functools import cached_property

from edgelm.runtime.text.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# Printable characters stand for themselves, as in GPT-2's encoder; the other bytes for those
# from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + at): byte for at, byte in enumerate(_OTHERS)
}


class TokenBytes:
    """The bytes that each token of a model adds to a text.

    Decoding a token alone does not give them: half a character becomes U+FFFD, and SentencePiece's
    decoders drop the space before the first word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> bytes:
        """The bytes of a token; the name of a special one; none of an id without a token."""
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        piece = self._tokenizer.token(token)
        if piece is None:
            return b""
        if "ByteLevel" in self._decoders and all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        if "ByteFallback" in self._decoders and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        before, both = (self._tokenizer.decode(ids) for ids in ([token], [token, token]))
        # Behind itself, it has its space.
        return (both[len(before) :] or before or piece).encode()

    @cached_property
    def _added(self) -> dict[int, str]:
        return {number: token.content for number, token in self._tokenizer.added_tokens().items()}

    @cached_property
    def _decoders(self) -> set[str]:
        return _kinds(json.loads(self._tokenizer.decoder_json()))


def token_name(content: bytes, prefix: str = "") -> str:
    r"""The text of a token; of a part of a character its bytes as `\xf0\x9f`, after `prefix`."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in content)


def _kinds(decoder: object) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    inner = decoder.get("decoders")
    nested = [_kinds(one) for one in inner] if isinstance(inner, list) else []
    return {str(decoder.get("type"))}.union(*nested)
