"""The file of a saved sequence: its tokens, the model's state after them, and whose state it is.

    "edgelm-session", a line feed  8 bytes: length of the header  header (JSON)  arrays, one by one

A state is useful only with the same weights, tokenizer, engine and version of edgelm. The header
names them, and the hashes of itself and of the rest; a file that does not match is refused with the
reason.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from edgelm import __version__
from edgelm.bundle import Manifest
from edgelm.bundle.files import TOKENIZER, listed_graph_sha256
from edgelm.cli import format_bytes
from edgelm.errors import BadInput
from edgelm.files.json_files import shown
from edgelm.files.replacing import replace_file
from edgelm.reasons import reason
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.open import engine_version
from edgelm.runtime.engines.session import CacheRows

_MAGIC = b"edgelm-session\n"
_SCHEMA = 2
_MAX_HEADER = 64 * 2**20
_DTYPES = ("int8", "uint8", "uint16", "float16", "float32")
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose state it is: hashes of graph and weights and of the tokenizer, engine, edgelm.

    `adapter` is the hash of the adapter that the tokens ran with; empty without one.
    """

    graph: str
    tokenizer: str
    engine: str
    edgelm: str
    adapter: str = ""


class ArrayEntry(msgspec.Struct, frozen=True):
    """One array of the state."""

    dtype: str
    shape: tuple[_Count, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself; `messages`, `template` and `adapter` are those of a chat.

    `sha256` is the hash of the arrays, `header_sha256` that of the header with none in its place.
    """

    schema_version: int
    identity: Identity
    tokens: tuple[_Count, ...]
    arrays: tuple[ArrayEntry, ...]
    sha256: str
    messages: list[dict[str, Any]] = []
    template: dict[str, Any] = {}
    beginning: _Count = 0
    adapter: str | None = None
    header_sha256: str = ""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A file that was written: `tokens` whose state it holds, and its size."""

    path: Path
    tokens: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.path}: the state of {self.tokens} tokens, {format_bytes(self.bytes)}"


def identity_of(manifest: Manifest) -> Identity:
    """What a state of this bundle, on this machine, depends on."""
    return Identity(
        graph=listed_graph_sha256(manifest),
        tokenizer=manifest.files[TOKENIZER].sha256,
        engine=f"{manifest.engine.name} {engine_version(manifest)}",
        edgelm=__version__,
    )


def with_adapter(identity: Identity, adapter: LoadedAdapter | None) -> Identity:
    """What a state depends on whose tokens ran with an adapter."""
    return msgspec.structs.replace(identity, adapter="" if adapter is None else adapter.sha256)


def write_session(
    path: Path,
    identity: Identity,
    tokens: Iterable[int],
    state: CacheRows,
    **chat: Any,
) -> SavedSession:
    """Write a file atomically.

    Args:
        path: the file; an earlier one is replaced.
        identity: whose state it is.
        tokens: the tokens of the state.
        state: what `Session.state` gave for them.
        chat: `messages`, `template`, `beginning` and `adapter` of a chat.

    Raises:
        BadInput: messages that are not plain values.
        OSError: it cannot be written; an earlier file is unchanged.
    """
    parts = [np.ascontiguousarray(array) for array in state]
    digest = hashlib.sha256()
    for array in parts:
        digest.update(array.data)
    header = Header(
        schema_version=_SCHEMA,
        identity=identity,
        tokens=tuple(int(token) for token in tokens),
        arrays=tuple(ArrayEntry(array.dtype.name, array.shape) for array in parts),
        sha256=digest.hexdigest(),
        **chat,
    )
    try:
        encoded = msgspec.json.encode(sealed_header(header))
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadInput(
            f"this chat cannot be saved: {reason(error)}; its messages must be plain values"
        ) from None
    start = [_MAGIC, struct.pack("<Q", len(encoded)), encoded]
    content = b"".join([*start, *(array.tobytes() for array in parts)])
    # It holds what was said: not for other users of the machine.
    replace_file(path, content, mode=0o600)
    return SavedSession(path, len(header.tokens), len(content))


def sealed_header(header: Header) -> Header:
    """A header with its own hash."""
    plain = msgspec.json.encode(msgspec.structs.replace(header, header_sha256=""))
    return msgspec.structs.replace(header, header_sha256=hashlib.sha256(plain).hexdigest())


def read_header(path: Path) -> Header:
    """Read what a file says of itself, its messages included, whatever model it is of.

    Raises:
        BadInput: there is no such file, or it is not a session.
    """
    with _opened(path) as file:
        return _read_header(path, file)


def read_session(path: Path, identity: Identity) -> tuple[Header, CacheRows]:
    """Read a file that `write_session` wrote for the same model, engine and edgelm.

    Raises:
        BadInput: there is no such file, it is damaged, or it is of something else.
    """
    with _opened(path) as file:
        header = _read_header(path, file)
        _check_identity(path, header.identity, identity)
        size = sum(array.nbytes for array in header.arrays)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if left != size:
            raise BadInput(
                f"{path} holds {left} bytes of state, its header says {size}: it is truncated "
                f"or changed; {_AGAIN}"
            )
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise BadInput(f"{path} does not match its own hash: it is damaged; {_AGAIN}")
    try:
        return header, _arrays(header, content)
    except ValueError as error:  # no rows, and other sizes that overflow
        raise BadInput(f"{path} is damaged: {reason(error)}; {_AGAIN}") from None


_AGAIN = "delete it, and save the chat again"


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """An open regular file: reading a pipe or a device may never end."""
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is not a file; expected one that chat.save wrote")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL character in its name
        raise BadInput(f"{str(path)!r} cannot be read: {reason(error)}") from None


def _read_header(path: Path, file: BufferedReader) -> Header:
    start = file.read(len(_MAGIC) + 8)
    if len(start) != len(_MAGIC) + 8 or not start.startswith(_MAGIC):
        raise BadInput(f"{path} is not a saved session; expected a file that chat.save wrote")
    (length,) = struct.unpack("<Q", start[len(_MAGIC) :])
    if length > _MAX_HEADER:
        raise BadInput(f"{path} is damaged: its header has {length} bytes; {_AGAIN}")
    try:
        header = msgspec.json.decode(file.read(length), type=Header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is damaged or of another version: {reason(error)}; {_AGAIN}"
        ) from None
    if header.schema_version != _SCHEMA:
        raise BadInput(
            f"{path} has schema version {header.schema_version}, this edgelm reads {_SCHEMA}; use "
            "the edgelm that wrote it, or save the chat again"
        )
    if sealed_header(header) != header:
        raise BadInput(f"{path} does not match its own hash: it is damaged; {_AGAIN}")
    unknown = {array.dtype for array in header.arrays} - set(_DTYPES)
    if unknown:
        raise BadInput(f"{path} has an array of type {shown(min(unknown))}; {_AGAIN}")
    return header


def _check_identity(path: Path, saved: Identity, here: Identity) -> None:
    names = {
        "graph": "another model (its graph or weights differ)",
        "tokenizer": "a model with another tokenizer",
        "engine": f"the engine {saved.engine}, this is {here.engine}",
        "adapter": "another adapter, or with one of other weights",
        "edgelm": f"edgelm {saved.edgelm}, this is {here.edgelm}",
    }
    for name, what in names.items():
        if getattr(saved, name) != getattr(here, name):
            raise BadInput(
                f"{path} was saved with {what}: its state cannot be used; its messages can: "
                "Chat.load(model, path, state=False)"
            )


def _arrays(header: Header, content: bytes) -> CacheRows:
    arrays, at = [], 0
    for entry in header.arrays:
        flat = np.frombuffer(content, entry.dtype, math.prod(entry.shape), at)
        arrays.append(flat.reshape(entry.shape))
        at += entry.nbytes
    return arrays
