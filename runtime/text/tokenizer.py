"""Text to tokens and back, one token at a time."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import tokenizers

from edgelm.errors import BadBundle, BadInput
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.text.tokenizer_limits import (
    MAX_BYTES,
    check_ids,
    check_pieces,
    check_pipeline,
    check_values,
)

T = TypeVar("T")

OF_ONE_CALL = ("truncation", "padding")
_LONG_WAIT = 32  # tokens without a whole character: the bytes are broken
_LONGEST_WAIT = 256
_REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are not a complete character yet


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Open a tokenizer.json that somebody else wrote.

    Truncation and padding that were saved with it are left out: they belong to the training run
    that set them, and would cut or fill every prompt.

    Raises:
        BadBundle: not a tokenizer, one that would make the library exhaust the memory, or one in
            which an id stands for two tokens.
    """
    try:
        data = without_limits(read_parts(read_bounded(path, at_most=MAX_BYTES)))
        return _guarded(lambda: tokenizers.Tokenizer.from_buffer(data), BadBundle, "")
    except FileNotFoundError:
        raise BadBundle(f"{path} is missing; export the model again") from None
    except BadBundle as error:
        if str(error).startswith(str(path)):
            raise
        raise BadBundle(f"{path} is not a tokenizer: {error}; export the model again") from None


def read_parts(data: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a tokenizer.json, checked so that the library can read it.

    Raises:
        BadBundle: not JSON, or a file that would make the library exhaust the memory.
    """
    check_values(data)
    try:
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            check_pipeline(name, msgspec.json.decode(parts.get(name, b"null")))
        model = parts.get("model", msgspec.Raw(b"null"))
        added = parts.get("added_tokens", msgspec.Raw(b"null"))
        check_ids(added, model)
        check_pieces(added, model)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadBundle(reason(error)) from None
    return parts


def without_limits(parts: dict[str, msgspec.Raw]) -> bytes:
    """A tokenizer.json without truncation and padding, which belong to one call of it."""
    return msgspec.json.encode(parts | dict.fromkeys(OF_ONE_CALL, msgspec.Raw(b"null")))


class Tokenizer:
    """A bundle's tokenizer."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = open_tokenizer(path)

    def encode(self, text: str, *, special: bool = True) -> Tokens:
        """Token ids of a text; `special` adds what the model expects around it (e.g. BOS).

        Raises:
            BadInput: not a text, or one that cannot be encoded.
        """
        check_text(text)
        found = _guarded(
            lambda: self._tokenizer.encode(text, add_special_tokens=special),
            BadInput,
            "the tokenizer cannot encode this text: ",
        )
        return np.array(found.ids, dtype=np.int64)

    def encode_plain(self, text: str) -> Tokens:
        """Token ids of a text in which no control token is looked for, as text alone."""
        check_text(text)
        ids = _guarded(
            lambda: self._plain_ids(text), BadInput, "the tokenizer cannot encode this text: "
        )
        return np.array(ids, dtype=np.int64)

    def _plain_ids(self, text: str) -> list[int]:
        inner = self._tokenizer
        if inner.normalizer is not None:
            text = inner.normalizer.normalize_str(text)
        splits = [text]
        if inner.pre_tokenizer is not None:
            splits = [split for split, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in inner.model.tokenize(split)]

    def encode_behind(self, context: str, text: str) -> list[int]:
        """Token ids of a text that follows another one.

        Empty where a token covers the end of the one and the beginning of the other.
        """
        found = _guarded(
            lambda: self._tokenizer.encode(context + text, add_special_tokens=False),
            BadInput,
            "the tokenizer cannot encode this text: ",
        )
        starts = [start for start, _ in found.offsets]
        first = bisect_left(starts, len(context))
        if first and found.offsets[first - 1][1] > len(context):
            return []
        return list(found.ids[first:])

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        """Text of token ids, without special tokens unless they are requested."""
        return _guarded(
            lambda: self._tokenizer.decode(tokens, skip_special_tokens=not special),
            BadBundle,
            "the tokenizer cannot decode its own tokens: ",
        )

    def to_json(self) -> str:
        """The text of its tokenizer.json, without truncation and padding."""
        return self._tokenizer.to_str()

    def decoder_json(self) -> bytes:
        """The `decoder` of its tokenizer.json; `null` if it has none."""
        decoder = self._tokenizer.decoder
        return b"null" if decoder is None else bytes(decoder.__getstate__())

    def token(self, identifier: int) -> str | None:
        """The piece of the vocabulary with this id."""
        return self._tokenizer.id_to_token(identifier) if 0 <= identifier < 2**32 else None

    def added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        """The tokens that are found in a text before it is split: id to token."""
        return self._tokenizer.get_added_tokens_decoder()


def check_text(text: object) -> None:
    """Raise BadInput for what is not a text that can be written as UTF-8."""
    if not isinstance(text, str):
        raise BadInput(f"expected a text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"character {error.start} of the text is half of a surrogate pair "
            f"({text[error.start]!a}), which is not a character; the text was read with "
            "another encoding than it was written with"
        ) from None


def _guarded(call: Callable[[], T], kind: type[BadBundle | BadInput], prefix: str) -> T:
    """Call native code that raises plain Exception, and, where it panics, not even that."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        panicked = not isinstance(error, Exception)
        raise (BadBundle if panicked else kind)(f"{prefix}{reason(error)}") from None


class Detokenizer:
    """Streams text: what is returned never ends in half a character.

    Decoding is not additive (a piece's text can depend on its left neighbor), so a short tail of
    tokens is decoded twice, with and without the newest, and the difference is what is new. (The
    library's DecodeStream gives the same, but cannot be flushed.)

    Args:
        tokenizer: of the model.
        shown: control tokens that become text, by id; others never do.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._tokens: list[int] = []
        self._context = 0  # tokens before this index only give context
        self._done = 0  # tokens before this index have been returned

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now complete, often but not always a piece."""
        if token in self._shown:
            text = self._new_text()
            self._done = len(self._tokens)  # what stands before it still gives context
            return text + self._shown[token]
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            return self._overdue(text) if len(self._tokens) - self._done >= _LONG_WAIT else ""
        if text:  # a special token alone gives no context: the next piece would lose its space
            self._context = self._done
        self._done = len(self._tokens)
        return text

    def flush(self) -> str:
        """What is left at the end: the text of tokens that never became whole characters."""
        text = self._new_text()
        self._context = self._done = len(self._tokens)
        return text

    def _overdue(self, text: str) -> str:
        """Return what no further token can change, so that the tail stays short.

        A character has at most four bytes: the first of them is among the last three tokens, or
        it never becomes whole.
        """
        whole = self._done
        for cut in range(len(self._tokens) - 3, len(self._tokens) - 7, -1):
            known = self._new_text(cut)
            if text.startswith(known):
                self._context, self._done = whole, cut
                return known
        return self.flush() if len(self._tokens) - whole >= _LONGEST_WAIT else ""

    def _new_text(self, end: int | None = None) -> str:
        before = self._tokenizer.decode(self._tokens[self._context : self._done])
        after = self._tokenizer.decode(self._tokens[self._context : end])
        return after[len(before) :]
