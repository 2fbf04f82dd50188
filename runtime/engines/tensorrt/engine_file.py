"""Compiled engines as files of a bundle: their names, and those that an interrupted build left.

A name ends in the hash of the content, so that an older engine stays in place, and matches its
manifest, until the manifest names the new one. Before it stands a hash of what the engine was
compiled from, and which of the graph's parts it is of.
"""

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from edgelm.bundle import EngineFile
from edgelm.bundle.file_names import ENGINES
from edgelm.bundle.paths import open_plain
from edgelm.devices.tensorrt_versions import RTX
from edgelm.errors import BadBundle
from edgelm.files.hashing import stream_sha256
from edgelm.files.staging import replace_file
from edgelm.runtime.engines.tensorrt.build import Built
from edgelm.runtime.engines.trust import is_trusted, trust

# The names that `save_part` gives: what it did not write it does not remove either.
ENGINE_NAME = re.compile(r"sm\d+(-sm\d+)*-(tensorrt|rtx)[\w.+-]*-[0-9a-f]{8}\.engine")


class PartKey(NamedTuple):
    """What a part's engine is compiled from, and with: equal keys, equal engines.

    inputs: a hash of the part's graph and weights, and of the builder's settings.
    """

    family: str
    version: str
    compute_capabilities: tuple[int, ...]
    number: int
    parts: int
    inputs: str

    @property
    def stem(self) -> str:
        """The beginning of its file's name."""
        gpus = "-".join(f"sm{sm}" for sm in self.compute_capabilities)
        library = "rtx" if self.family == RTX else self.family
        part = f"-{self.number}of{self.parts}" if self.parts > 1 else ""
        return f"{gpus}-{library}{self.version}-{self.inputs[:8]}{part}"

    def claim(self, digest: str) -> str:
        """A hash that this machine trusts if it compiled this content for this key."""
        return sha256(f"{self!r} {digest}".encode()).hexdigest()


def save_part(folder: Path, key: PartKey, built: Built) -> EngineFile:
    """Write an engine that this machine compiled into a bundle, and trust it.

    Raises:
        BadBundle: `engines` is a link, which would lead the engine out of the bundle.
        BadInput: the list of trusted engines cannot be written.
    """
    check_engines_link(folder)
    digest = sha256(built.content).hexdigest()
    file = _engine_file(key, digest)
    replace_file(folder / file.file, built.content)
    trust(digest)
    trust(key.claim(digest))
    return file


def find_part(folder: Path, key: PartKey, *, exclude: Sequence[str] = ()) -> EngineFile | None:
    """An engine of an interrupted build of the same part, if this machine compiled it.

    `exclude`: files of finished engines, which are compiled again on request.
    """
    for path in sorted((folder / ENGINES).glob(f"{key.stem}-????????.engine")):
        if f"{ENGINES}/{path.name}" in exclude:
            continue
        digest = _digest(path)
        if digest and is_trusted(digest) and is_trusted(key.claim(digest)):
            return _engine_file(key, digest)
    return None


def check_engines_link(folder: Path) -> None:
    """Raise BadBundle where engines would be written to another folder."""
    if os.path.islink(folder / ENGINES):
        raise BadBundle(f"{folder / ENGINES} is a link; remove it and compile again")


def _engine_file(key: PartKey, digest: str) -> EngineFile:
    stem = f"{ENGINES}/{key.stem}-{digest[:8]}"
    return EngineFile(f"{stem}.engine", f"{stem}.cache" if key.family == RTX else "")


def _digest(path: Path) -> str | None:
    try:
        with open_plain(path) as file:
            return stream_sha256(file)
    except (OSError, BadBundle):
        return None
