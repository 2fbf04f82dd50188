"""GGUF files in parts, name-00001-of-00003.gguf and so on, as `llama-gguf-split` writes them.

Each part has a complete header; the first one has the model's metadata. A part may have no tensors.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.header import Header, read_header
from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.errors import BadCheckpoint
from edgelm.files.file_range import read_ranges
from edgelm.files.json_files import shown
from edgelm.reasons import reason

_PART_NAME = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})(?P<of>-of-)(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class GgufPart:
    """One file with its header; `size` is in bytes."""

    path: Path
    size: int
    header: Header

    @property
    def metadata(self) -> GgufMetadata:
        """Its key-value pairs."""
        return GgufMetadata(self.path, self.header.metadata)

    def read(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Bytes of the file, uint8 [count].

        Raises:
            BadCheckpoint: the file has lost them since it was opened, or cannot be read.
        """
        return self.read_ranges([(start, count)])

    def read_ranges(self, ranges: list[tuple[int, int]]) -> npt.NDArray[np.uint8]:
        """Ranges of the file, (start, bytes) each, one after the other."""
        data = np.empty(sum(count for _, count in ranges), np.uint8)
        try:
            read_ranges(self.path, ranges, data.data)
        except OSError as error:
            raise BadCheckpoint(f"{self.path} cannot be read: {reason(error)}") from None
        return data


def open_parts(path: Path) -> list[GgufPart]:
    """Open a GGUF file, and all other parts if it is one of several.

    Raises:
        BadCheckpoint: a file is damaged, or a part is missing or belongs to another model.
    """
    given = _open(path)
    count = given.metadata.integer("split.count", 1, most=99_999) or 1
    if count == 1:
        return [given]
    parts = [given if part == path else _open(part) for part in _part_paths(path, count)]
    for number, part in enumerate(parts):
        stored = (part.metadata.integer("split.no"), part.metadata.integer("split.count"))
        if stored != (number, count):
            raise BadCheckpoint(
                f"{part.path} has split.no {stored[0]} and split.count {stored[1]}, expected "
                f"{number} and {count}; is it a part of another model?"
            )
    _check_tensors(parts)
    return parts


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise BadCheckpoint(
            f"{path} is one of {count} parts of a split model, but its name does not lead to the "
            f"others; expected a name such as model-00001-of-{count:05}.gguf, or one file "
            "(llama-gguf-split --merge)"
        )
    names = [
        f"{match['stem']}-{number:05}{match['of']}{count:05}{match['suffix']}"
        for number in range(1, count + 1)
    ]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise BadCheckpoint(
            f"{path} is one of {count} parts of a split model, and {len(missing)} of them are "
            f"missing, first {missing[0]}; put all parts into one folder"
        )
    return [path.with_name(name) for name in names]


def _check_tensors(parts: list[GgufPart]) -> None:
    seen: dict[str, Path] = {}
    for part in parts:
        for name in part.header.tensors:
            if name in seen:
                raise BadCheckpoint(
                    f"{part.path}: the tensor {shown(name)} is in {seen[name].name} as well; are "
                    "the parts from different models?"
                )
            seen[name] = part.path
    expected = parts[0].metadata.integer("split.tensors.count")
    if expected is not None and expected != len(seen):
        raise BadCheckpoint(
            f"{parts[0].path}: the {len(parts)} parts hold {len(seen)} tensors, "
            f"split.tensors.count is {expected}; download them again"
        )


def _open(path: Path) -> GgufPart:
    size = path.stat().st_size
    return GgufPart(path, size, read_header(path, size))
