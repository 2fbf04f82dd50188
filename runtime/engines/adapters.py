"""The adapters of a bundle in memory, as a graph is given them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgelm.bundle import Manifest, bundle_file
from edgelm.bundle.records.adapters import AdapterRecord, LowRankInput
from edgelm.checkpoint.weights.safetensors_header import StoredTensor, read_header
from edgelm.errors import BadBundle, BadCheckpoint, UnknownName
from edgelm.reasons import reason

_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory; two are the same only if they are the same object.

    sha256: of its file; saved states depend on it.
    arrays: fp32 matrices by the names of the graph's inputs, which they are bound to.
    """

    name: str
    sha256: str
    arrays: Mapping[str, npt.NDArray[np.float32]]


@runtime_checkable
class SwitchesAdapters(Protocol):
    """What an engine has whose graph takes adapters."""

    def use_adapter(self, adapter: LoadedAdapter | None) -> None:
        """Bind an adapter to the next runs, or none. The cache's rows are then of another model."""


class Adapters(Mapping[str, LoadedAdapter]):
    """The adapters of a bundle, by name, in memory.

    Raises:
        BadBundle: a file that is damaged or does not fit the graph.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._loaded = {one.name: read_adapter(folder, manifest, one) for one in manifest.adapters}

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The adapter of this name; None for none.

        Raises:
            UnknownName: the bundle has no such adapter.
        """
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._loaded:
            known = ", ".join(self._loaded)
            raise UnknownName(
                f"unknown adapter {name!r}; "
                + (f"this bundle has {known}" if known else "this bundle has none")
            )
        return self._loaded[name]

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)


def read_adapter(folder: Path, manifest: Manifest, record: AdapterRecord) -> LoadedAdapter:
    """Read an adapter's file.

    Raises:
        BadBundle: it is damaged, or does not fit the graph.
    """
    path = bundle_file(folder, manifest, record.file)
    if path is None:
        raise BadBundle(f"the manifest does not list {record.file}; {_AGAIN}")
    try:
        stored = read_header(path)
    except BadCheckpoint as error:
        raise BadBundle(f"{error}; {_AGAIN}") from None
    arrays: dict[str, Any] = {}
    for one in manifest.graph.low_rank:
        down, up = (stored.pop(f"{one.group}.{part}", None) for part in ("down", "up"))
        if down is None and up is None:
            continue
        _check(path, one, down, up)
        assert down is not None
        assert up is not None
        arrays[one.down], arrays[one.up] = _read(down), _read(up)
    if stored:
        raise BadBundle(f"{path} changes {min(stored)!r}, which the graph does not take; {_AGAIN}")
    return LoadedAdapter(record.name, manifest.files[record.file].sha256, arrays)


def _check(
    path: Path, one: LowRankInput, down: StoredTensor | None, up: StoredTensor | None
) -> None:
    if down is None or up is None:
        raise BadBundle(f"{path} has one factor of {one.group!r}, expected both; {_AGAIN}")
    rank = down.shape[-1] if down.shape else 0
    for tensor, shape in ((down, (one.inputs, rank)), (up, (rank, one.outputs))):
        if tensor.dtype != "F32" or tensor.shape != shape or not rank:
            raise BadBundle(
                f"{path}: {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, expected F32 of "
                f"{one.inputs} inputs, {one.outputs} outputs and one rank; {_AGAIN}"
            )


def _read(stored: StoredTensor) -> npt.NDArray[np.float32]:
    count = (stored.end - stored.start) // 4
    try:
        flat = np.fromfile(stored.path, np.float32, count, offset=stored.start)
    except OSError as error:
        raise BadBundle(f"{stored.path} cannot be read: {reason(error)}; {_AGAIN}") from None
    if flat.size != count:
        raise BadBundle(f"{stored.path} is truncated; {_AGAIN}")
    return flat.reshape(stored.shape)
