"""States of long prompt beginnings, kept in a folder across runs of the program.

The beginning that a conversation shares with others (its system message and tools) is stored when
it was computed once. A later prompt that begins with it, in this process or another one, reads the
state instead of computing it. The least recently used files go when the folder exceeds its limit.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from edgelm.errors import BadInput
from edgelm.reasons import reason
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.session import CacheRows
from edgelm.runtime.saved.session_file import Identity, read_session, with_adapter, write_session

log = logging.getLogger(__name__)

DEFAULT_BYTES = 2_000_000_000
# Fewer tokens are computed faster than a file is found and read.
MIN_TOKENS = 64
_SUFFIX = ".session"


class PromptCache:
    """A folder of states of one model; several processes may share it.

    Args:
        folder: where the files are; it is made if it is missing.
        identity: whose states they are: those of others are left alone.
        max_bytes: of all files in the folder together.

    Raises:
        BadInput: the folder cannot be written to.
    """

    def __init__(self, folder: Path, identity: Identity, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._identity = identity
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # a NUL character in its name
            raise BadInput(
                f"the prompt cache {folder} cannot be created: {reason(error)}; choose another "
                "folder"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadInput(
                f"the prompt cache {folder} cannot be written to; choose another folder, or change "
                "its permissions"
            )

    def read(self, tokens: Sequence[int], adapter: LoadedAdapter | None = None) -> CacheRows | None:
        """The state after exactly these tokens, run with an adapter; None if it is not stored.

        A file that cannot be used is removed, and a warning says why.
        """
        path = self._path(tokens, adapter)
        if not self.has(tokens, adapter):
            return None
        try:
            header, state = read_session(path, with_adapter(self._identity, adapter))
            if header.tokens != tuple(tokens):
                raise BadInput(f"{path} does not hold the tokens that its name states")
        except BadInput as error:
            log.warning("prompt cache: %s", error)
            with suppress(OSError):  # the folder may be read-only by now
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return state

    def has(self, tokens: Sequence[int], adapter: LoadedAdapter | None = None) -> bool:
        """Whether the state after exactly these tokens is stored."""
        return os.path.exists(self._path(tokens, adapter))  # not if the folder cannot be read

    def write(
        self, tokens: Sequence[int], state: CacheRows, adapter: LoadedAdapter | None = None
    ) -> None:
        """Store a state, and remove the least recently used ones beyond the limit."""
        if sum(array.nbytes for array in state) > self.max_bytes:
            return
        try:
            identity = with_adapter(self._identity, adapter)
            saved = write_session(self._path(tokens, adapter), identity, tokens, state)
        except OSError as error:
            log.warning("prompt cache: %s cannot be written: %s", self.folder, reason(error))
            return
        log.info("prompt cache: %s", saved)
        self._shrink()

    def _shrink(self) -> None:
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # another process removed it
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files)[:-1]:  # the newest stays
            if total <= self.max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, tokens: Sequence[int], adapter: LoadedAdapter | None) -> Path:
        digest = hashlib.sha256(msgspec.json.encode(with_adapter(self._identity, adapter)))
        digest.update(np.asarray(tokens, dtype=np.int64).data)
        return self.folder / f"{digest.hexdigest()[:32]}{_SUFFIX}"
