"""Figures of a study in a JSON file, each with a hash of everything that it depends on.

A study that is started again, or with other options into the same folder, measures what is missing
or was measured under other conditions, and never mixes the two.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgelm.compress.run.resumption import check_same_settings
from edgelm.files.staging import replace_file


class Entry(msgspec.Struct, frozen=True):
    """A figure and the hash of its inputs."""

    inputs: str
    value: Any


class Figures:
    """Figures by name, in a file that is rewritten after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        if path.exists():
            self._entries = msgspec.json.decode(path.read_bytes(), type=dict[str, Entry])

    def get(self, name: str, inputs: Mapping[str, Any]) -> Any:
        """The figure of a name, or None if there is none with these inputs."""
        entry = self._entries.get(name)
        return entry.value if entry and entry.inputs == digest(inputs) else None

    def put(self, name: str, inputs: Mapping[str, Any], value: Any) -> None:
        """Store a figure in JSON types, in place of one with other inputs."""
        self._entries[name] = Entry(digest(inputs), value)
        replace_file(self.path, msgspec.json.format(msgspec.json.encode(self._entries)))


def digest(inputs: Mapping[str, Any]) -> str:
    """16 hex digits that identify inputs in JSON types."""
    content = json.dumps(msgspec.to_builtins(dict(inputs), enc_hook=str), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder for one set of settings.

    Raises:
        BadInput: it was made for other settings; names what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    now = json.loads(msgspec.json.encode(dict(settings), enc_hook=str))
    if path.exists():
        check_same_settings(folder, json.loads(path.read_text()), now)
    else:
        replace_file(path, json.dumps(now, indent=1).encode() + b"\n")
