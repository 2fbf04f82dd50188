"""A teacher's predictions, computed once and stored on disk, for several runs on the same data.

Two kinds. `top-k` stores the k most likely tokens and their probabilities; all others are one event
with the tail's mass (Minitron found k of 100 and less to hurt, table 15). `sampled` stores n tokens
drawn from the teacher, whose expected gradient equals the full one (arXiv 2503.16870).

Rows are divided into parts, each in a folder of its own, which several processes can write at the
same time. The parts depend on the data alone, so that any number of processes can resume.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgelm.cli import format_bytes
from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.data.token_bytes import token_bytes
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.loss.losses import Sampled, TopK
from edgelm.compress.head import Head
from edgelm.compress.model import Model
from edgelm.compress.run.distributed import process_index, wait_for_all, world_size
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.disk_space import reserve
from edgelm.files.staging import replace_file
from edgelm.reasons import reason

_RECORD, _IDS, _PROBABILITIES = "cache.json", "ids.bin", "probabilities.bin"
_BATCH = 4  # rows of tokens that pass through the teacher at a time
_CHUNK = 256  # positions whose logits exist at a time
_PARTS, _MOST_ROWS = 64, 4096  # the least number of parts of large data, the most rows of a part


class _Record(msgspec.Struct, frozen=True):
    """What a cache holds, or a part of it: `rows` from row `first` on, of which `done` exist."""

    settings: CacheSettings
    teacher: str
    rows: int
    length: int
    vocab_size: int
    first: int = 0
    done: int = 0


class TeacherCache:
    """Cached predictions of all rows of a data set, mapped from disk."""

    def __init__(self, folder: Path) -> None:
        record = _read(folder)
        parts = [_read(path) for path, _ in _parts(folder, record)] if record else []
        if record is None or any(one is None or one.done < one.rows for one in parts):
            raise BadInput(f"{folder} does not hold a complete teacher cache; build it first")
        self.settings = record.settings
        self._rows, self._part_rows = record.rows, _part_rows(record.rows)
        self._parts = [_Part(path, one, "r") for path, one in _parts(folder, record)]

    def __len__(self) -> int:
        return self._rows

    def rows(self, indices: Any, device: torch.device) -> TopK | Sampled:
        """The predictions at all but the last position of rows, [B * (T - 1), size]."""
        places = [divmod(int(index), self._part_rows) for index in indices]
        found = [self._parts[part].ids[row] for part, row in places]
        ids = torch.from_numpy(np.stack(found).astype(np.int64)).flatten(0, 1).to(device)
        if self.settings.kind == "sampled":
            return Sampled(ids, torch.full(ids.shape, 1 / ids.shape[1], device=device))
        likely = [self._parts[part].probabilities[row] for part, row in places]
        values = torch.from_numpy(np.stack(likely).astype(np.float32))
        return TopK(ids, values.flatten(0, 1).to(device))


class _Part:
    """The mapped files of a part: ids [rows, length - 1, size], and probabilities of top-k."""

    def __init__(self, folder: Path, record: _Record, mode: str) -> None:
        self.folder = folder
        self.ids = _map(folder / _IDS, record, np.dtype(_id_type(record.vocab_size)), mode)
        self.probabilities: Any = None
        if record.settings.kind == "top-k":
            self.probabilities = _map(folder / _PROBABILITIES, record, np.dtype(np.float16), mode)

    def store(self, rows: range, ids: Any, probabilities: Any) -> None:
        """Write some rows, counted from the first one of the part."""
        _store(self.folder / _IDS, self.ids, rows, ids)
        if self.probabilities is not None:
            _store(self.folder / _PROBABILITIES, self.probabilities, rows, probabilities)


def cache_bytes(data: PackedTokens, vocab_size: int, settings: CacheSettings) -> int:
    """Bytes that a cache of this data will have."""
    return len(data) * (data.length - 1) * settings.bytes_per_position(vocab_size)


def build_cache(
    teacher: Model,
    name: str,
    data: PackedTokens,
    settings: CacheSettings,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    *,
    shared: bool = False,
) -> TeacherCache:
    """Run the teacher over all rows; an interrupted build resumes.

    Args:
        teacher: a model in any type.
        name: what identifies the teacher, e.g. the hash of its weights.
        data: packed rows.
        settings: what to store.
        folder: to write.
        progress: called with the number of rows done; about, if they are divided.
        shared: divide the parts over all processes, each of which has to make the same call, with
            a folder that all of them see.

    Raises:
        BadInput: the folder holds a cache of another teacher, data or kind, or a damaged one;
            the vocabulary has fewer tokens than are to be stored.
        DoesNotFit: the disk has too little space (nothing was written), or is full meanwhile.
    """
    index, of = (process_index(), world_size()) if shared else (0, 1)
    record = _Record(
        settings, name, len(data), data.length, _check_size(teacher.config.vocab_size, settings)
    )
    if index == 0:
        _begin(folder, record, data)
    if shared:
        wait_for_all()  # for the folder
    done = 0
    for path, part in _parts(folder, record)[index::of]:
        found = _read(path)
        for count in _build_part(teacher, data, path, part, found):
            if progress:
                progress(min(len(data), of * (done + count)))
        done += part.rows
    if shared:
        wait_for_all()
    return TeacherCache(folder)


def _check_size(vocab: int, settings: CacheSettings) -> int:
    limit = vocab if settings.kind == "top-k" else math.inf
    if not 1 <= settings.size <= limit:
        raise BadInput(
            f"a cache of {settings.size} tokens per position: expected at least 1, and for "
            f"top-k at most the vocabulary's {vocab:,}"
        )
    return vocab


def _begin(folder: Path, record: _Record, data: PackedTokens) -> None:
    """Write the record of a new cache, or check that of an existing one."""
    found = _read(folder)
    if found is None:
        _check_free_space(folder, cache_bytes(data, record.vocab_size, record.settings))
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, record)
    elif found != record:
        raise BadInput(
            f"{folder} holds a cache of another teacher, data or kind; choose another folder"
        )


def _parts(folder: Path, record: _Record) -> list[tuple[Path, _Record]]:
    """The folders of all parts, and what each is to hold."""
    size = _part_rows(record.rows)
    return [
        (
            folder / f"part-{first // size:05d}",
            msgspec.structs.replace(record, first=first, rows=min(size, record.rows - first)),
        )
        for first in range(0, record.rows, size)
    ]


def _part_rows(rows: int) -> int:
    """Rows of each part but the last: whole batches, so that parts change no prediction."""
    return -(-min(_MOST_ROWS, -(-rows // _PARTS)) // _BATCH) * _BATCH


def _build_part(
    teacher: Model, data: PackedTokens, folder: Path, record: _Record, found: _Record | None
) -> Iterator[int]:
    """Build a part, or what is missing of it; yields the number of its rows done."""
    done = found.done if found else 0
    if not found:
        folder.mkdir(exist_ok=True)
    part = _Part(folder, record, "r+" if found else "w+")
    if not found:
        _write(folder, record)
    for start in range(done, record.rows, _BATCH):
        rows = range(start, min(start + _BATCH, record.rows))
        first = record.first + start
        tokens = data.batch(range(first, first + len(rows)))
        part.store(rows, *_predict(teacher, tokens, record.settings, first))
        _write(folder, msgspec.structs.replace(record, done=rows.stop))
        yield rows.stop


def _predict(
    teacher: Model, tokens: torch.Tensor, settings: CacheSettings, start: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    device = teacher.device
    head = Head.from_model(teacher)
    # Seeded by the row, so that an interrupted build draws the same tokens as an uninterrupted one.
    generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + start)
    ids, values = [], []
    with torch.inference_mode():
        hidden = teacher.base_model(input_ids=tokens.to(device), use_cache=False).last_hidden_state
        for part in hidden[:, :-1].flatten(0, 1).split(_CHUNK):
            probabilities = head.logits(part).softmax(-1)
            if settings.kind == "top-k":
                top = probabilities.topk(settings.size)
                ids.append(top.indices)
                values.append(top.values)
            else:
                drawn = torch.multinomial(
                    probabilities, settings.size, replacement=True, generator=generator
                )
                ids.append(drawn)
    shape = (len(tokens), tokens.shape[1] - 1, settings.size)
    kept = torch.cat(ids).view(shape).cpu().numpy()
    likely = torch.cat(values).view(shape).cpu().numpy() if values else np.empty(0)
    return kept, likely


def _id_type(vocab_size: int) -> str:
    return "uint16" if token_bytes(vocab_size) == 2 else "uint32"


def _map(path: Path, record: _Record, dtype: Any, mode: Any) -> Any:
    shape = (record.rows, record.length - 1, record.settings.size)
    # numpy would fill what is missing with zeros.
    whole = path.is_file() and path.stat().st_size == math.prod(shape) * dtype.itemsize
    if mode != "w+" and not whole:
        raise BadInput(f"{path} is missing or damaged; remove the folder and build the cache again")
    return np.memmap(path, dtype, mode, shape=shape)


def _store(path: Path, stored: Any, rows: range, values: np.ndarray[Any, Any]) -> None:
    """Write some rows of a mapped file.

    Raises:
        DoesNotFit: the disk is full, which would end the process when a page is written.
    """
    each = stored[0].nbytes
    try:
        reserve(path, len(rows) * each, start=rows.start * each)
        stored[rows.start : rows.stop] = values
        stored.flush()
    except OSError as error:
        raise DoesNotFit(
            f"no room for the teacher cache {path}: {error.strerror}; free some space and start "
            f"again, which resumes after {rows.start:,} rows"
        ) from None


def _check_free_space(folder: Path, needed: int) -> None:
    import shutil

    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DoesNotFit(
            f"the teacher cache needs {format_bytes(needed)}, {parent} has {format_bytes(free)} "
            "free; store fewer tokens per position, use less data, or remove `cache`"
        )


def _read(folder: Path) -> _Record | None:
    path = folder / _RECORD
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except msgspec.DecodeError as error:
        raise BadInput(f"{path} is damaged ({reason(error)}); remove the folder") from None


def _write(folder: Path, record: _Record) -> None:
    replace_file(folder / _RECORD, msgspec.json.encode(record))
