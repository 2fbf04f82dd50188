"""A JSONL file that grows by batches and can be interrupted at any moment.

The manifest next to it records how the texts are made and how many bytes are valid. A batch is
first appended and synced, then counted; bytes beyond the count (a partial line or a whole batch)
are truncated and written again. A batch depends only on its number and on the texts accepted
before, so the file ends up the same.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from edgelm.compress.run.resumption import check_same_settings
from edgelm.errors import BadInput
from edgelm.files.staging import replace_file
from edgelm.reasons import reason

_CHUNK = 1 << 20


class Manifest(msgspec.Struct, frozen=True):
    """How a file of texts is made, and how much of it is done.

    settings: everything that the texts depend on; weights and files as hashes.
    batches: batches done; bytes: length of the file after them; sha256: of these bytes, empty in
    files of versions without hashes.
    documents: texts accepted; tokens: sampled for accepted and rejected texts.
    dropped: texts rejected, by reason.
    """

    settings: dict[str, Any]
    batches: int = 0
    bytes: int = 0
    sha256: str = ""
    documents: int = 0
    tokens: int = 0
    dropped: dict[str, int] = {}
    finished: bool = False
    format: int = 1


class SynthesisLog:
    """Opens a new or an interrupted file for more batches.

    Raises:
        BadInput: the file has no manifest, is damaged, or was made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path.absolute()
        self._digest = hashlib.sha256()
        self.manifest = self._opened(settings)

    def rows(self) -> list[dict[str, Any]]:
        """The rows written so far."""
        with self.path.open("rb") as file:
            return [msgspec.json.decode(line) for line in file]

    def append(self, rows: list[dict[str, Any]], manifest: Manifest) -> None:
        """Write one batch and count it; `bytes` is filled in."""
        content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            end = file.tell()
        self._digest.update(content)
        sha256 = self._digest.hexdigest()
        self._write(msgspec.structs.replace(manifest, bytes=end, sha256=sha256))

    def discard(self) -> None:
        """Remove the file and its manifest."""
        self.path.unlink()
        manifest_path(self.path).unlink()

    def _opened(self, settings: dict[str, Any]) -> Manifest:
        file, sidecar = self.path, manifest_path(self.path)
        if not sidecar.exists():
            if file.exists():
                raise BadInput(
                    f"{file} exists and has no {sidecar.name} to resume from; it is not "
                    "replaced: choose another file or remove it"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            manifest = Manifest(settings)
        else:
            manifest = read_manifest(file)
            if manifest.batches:
                check_same_settings(file, manifest.settings, settings)
            manifest = msgspec.structs.replace(manifest, settings=settings)
        self._write(manifest)
        size = file.stat().st_size if file.exists() else 0
        if size < manifest.bytes:
            raise BadInput(
                f"{file} has {size} bytes, {sidecar.name} counts {manifest.bytes}: text is "
                "missing; remove both files and start again"
            )
        with file.open("a+b") as opened:
            opened.truncate(manifest.bytes)
            opened.seek(0)
            while chunk := opened.read(_CHUNK):
                self._digest.update(chunk)
        if manifest.sha256 not in ("", self._digest.hexdigest()):
            raise BadInput(
                f"{file} does not match its hash in {sidecar.name}: it is damaged or was edited; "
                "remove both files and start again"
            )
        return manifest

    def _write(self, manifest: Manifest) -> None:
        self.manifest = manifest
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        replace_file(manifest_path(self.path), content + b"\n")


def manifest_path(path: Path) -> Path:
    """The manifest next to a file of texts."""
    return path.with_name(f"{path.name}.manifest.json")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a file of texts.

    Raises:
        BadInput: it is missing, damaged or of another version.
    """
    sidecar = manifest_path(path)
    try:
        manifest = msgspec.json.decode(sidecar.read_bytes(), type=Manifest)
    except OSError as error:
        raise BadInput(f"cannot read {sidecar}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            f"{sidecar} is damaged ({reason(error)}); remove it and {path.name} and start again"
        ) from None
    if manifest.format != 1:
        raise BadInput(
            f"{sidecar} has format {manifest.format}, this edgelm reads format 1; use the edgelm "
            f"that wrote it, or remove it and {path.name} and start again"
        )
    return manifest
