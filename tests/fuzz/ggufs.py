"""GGUF files: header bytes and structure changed; what opens is compared with the gguf package.

Every tensor that opens must hold the values that gguf's own reader finds under its name, in any
order (llama.cpp interleaves the rows of a head), and every size must be the metadata's.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np

from edgelm.checkpoint.source import Checkpoint, open_checkpoint, read_spec
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.planning import PlanRequest
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.gguf_layout import ARRAY, SCALARS, STRING, Array, Entry, Layout, parsed
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import NUMBERS, TEXTS

_FAMILIES = {"llama": "F32", "qwen2": "Q8_0", "qwen3": "F16", "gemma2": "F32", "gemma3": "Q8_0"}
_INTEGERS = [int(n) for n in NUMBERS if n == n and abs(n) != float("inf") and abs(n) < 2**80]
_ALL_KINDS = (*SCALARS, STRING, ARRAY, 13, 255, 2**31)
_GENERAL_KEYS = (b"general.alignment", b"split.count", b"general.license", b"adapter.type")
_MORE_KEYS = (
    *(b".rope.scaling.type", b".rope.scaling.factor", b".rope.dimension_count", b".expert_count"),
    *(b".attention.key_length", b".vocab_size", b".attention.sliding_window", b".attention.scale"),
)
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}


class Ggufs(Kind):
    """What opens has the sizes and values that the gguf package reads."""

    name = "gguf"

    def prepare(self, folder: Path) -> None:
        self.files: list[tuple[bytes, int]] = []
        for family, kind in _FAMILIES.items():
            model = tiny_model(family, vocab_size=VOCAB, num_hidden_layers=2)
            path = write_gguf(model, folder / f"{family}.gguf", kind, tokenizer=tiny_tokenizer())
            data = path.read_bytes()
            self.files.append((data, len(data) - len(parsed(data).data)))
            open_checkpoint(path)
        self.profile = load_profile("cpu")

    def make(self, rng: Random, folder: Path) -> Case:
        data, header = rng.choice(self.files)
        notes = []
        if rng.random() < 0.35:
            for _ in range(rng.choice((1, 1, 2))):
                data, note = mutate_bytes(rng, data, within=header)
                notes.append(note)
        else:
            layout = parsed(data)
            for _ in range(rng.choice((1, 1, 1, 2))):
                notes.append(rng.choice(_CHANGES)(rng, layout))
            data = layout.encoded()
        (folder / "model.gguf").write_bytes(data)
        return Case("; ".join(notes))

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        path = folder / "model.gguf"
        spec = read_spec(path)
        plan(spec, self.profile, PlanRequest())
        checkpoint = open_checkpoint(path)
        values = {name: checkpoint.tensor(name).numpy() for name in checkpoint.shapes}
        reference()
        if checkpoint.spec != spec:
            raise Wrong("read_spec and open_checkpoint differ")
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:
            raise Wrong(f"it opened, and gguf refuses it: {error}") from None
        _compare_sizes(checkpoint, reader)
        _compare_values(checkpoint, reader, values)
        return "equal"


def _compare_sizes(checkpoint: Checkpoint, reader: Any) -> None:
    architecture = reader.fields["general.architecture"].contents()
    for ours, theirs in _SIZES.items():
        field = reader.fields.get(f"{architecture}.{theirs}")
        size = getattr(checkpoint.spec, ours)
        if field is not None and field.contents() and field.contents() != size:
            raise Wrong(f"{ours} is {size}, gguf reads {field.contents()}")


def _compare_values(checkpoint: Checkpoint, reader: Any, ours: dict[str, Any]) -> None:
    if len(reader.tensors) != len(ours):
        raise Wrong(f"{len(ours)} tensors, gguf reads {len(reader.tensors)}")
    found = sorted(map(_digest, ours.values()))
    wanted = sorted(_digest(_as_stored(t, checkpoint)) for t in reader.tensors)
    if found != wanted:
        differ = next(pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1])
        raise Wrong(f"values differ from those that gguf reads: {differ}")


def _as_stored(tensor: Any, checkpoint: Checkpoint) -> Any:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    offset = checkpoint.spec.norm_plus_one and "norm" in tensor.name
    return values - np.float32(1) if offset else values


def _digest(values: Any) -> tuple[int, str]:
    """Of the values' bits in any order; NaN is equal to itself here, -0 is not 0."""
    array = np.sort(np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32))
    return len(array), str(hash(array.tobytes()))


def _set_value(rng: Random, layout: Layout) -> str:
    entry = rng.choice(layout.entries)
    if isinstance(entry.value, bytes) and entry.kind not in SCALARS:
        entry.value = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif isinstance(entry.value, Array):
        return _set_array(rng, entry)
    else:
        entry.value = _number(rng, entry.kind)
    return f"{entry.key.decode()} is {str(entry.value)[:40]}"


def _set_array(rng: Random, entry: Entry) -> str:
    array = entry.value
    way = rng.choice(("count", "empty", "item", "value", "nested"))
    if way == "count":
        array.count = rng.choice(_INTEGERS)
    elif way == "empty":
        array.values = []
    elif way == "item":
        array.item = rng.choice(_ALL_KINDS)
        array.values = [b"raw"] if array.item not in SCALARS else [1] * 3
    elif way == "nested":
        depth = rng.choice((1, 5, 3000))
        innermost = struct.pack("<IQI", 4, 1, 7)
        entry.value = struct.pack("<IQ", ARRAY, 1) * depth + innermost
    else:
        at = rng.randrange(len(array.values))
        array.values[at] = b"\xff\xfe" if array.item == STRING else 2**31
    return f"{entry.key.decode()}: array, {way}"


def _set_type(rng: Random, layout: Layout) -> str:
    """The same key with a value of another type, which the file then truly has."""
    entry = rng.choice(layout.entries)
    entry.kind = rng.choice(_ALL_KINDS)
    if entry.kind == ARRAY:
        entry.value = Array(rng.choice((4, 8)), rng.choice(([], [1, 2])))
        entry.value.values = [b"x"] * len(entry.value.values) if entry.value.item == 8 else [4, 2]
    elif entry.kind in SCALARS:
        entry.value = _number(rng, entry.kind)
    else:
        entry.value = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return f"{entry.key.decode()} of type {entry.kind}: {str(entry.value)[:40]}"


def _drop(rng: Random, layout: Layout) -> str:
    if rng.random() < 0.6:
        return f"without {layout.entries.pop(rng.randrange(len(layout.entries))).key.decode()}"
    return f"without {layout.tensors.pop(rng.randrange(len(layout.tensors))).name.decode()}"


def _twice(rng: Random, layout: Layout) -> str:
    if rng.random() < 0.5:
        entry = rng.choice(layout.entries)
        other = rng.choice([one for one in layout.entries if one.kind == entry.kind])
        layout.entries.append(Entry(entry.key, entry.kind, other.value))
        return f"{entry.key.decode()} twice"
    tensor = rng.choice(layout.tensors)
    other_tensor = rng.choice(layout.tensors)
    other_tensor.name = tensor.name
    return f"{tensor.name.decode()} twice"


def _add(rng: Random, layout: Layout) -> str:
    named = [entry.value for entry in layout.entries if entry.key == b"general.architecture"]
    prefix = next((name for name in named if isinstance(name, bytes)), b"llama")  # may be removed
    key = rng.choice([*_GENERAL_KEYS, *(prefix + key for key in _MORE_KEYS)])
    kind = rng.choice((4, 4, 5, 6, 8, 10))
    value = rng.choice(TEXTS).encode("utf-8", "surrogatepass") if kind == 8 else _number(rng, kind)
    layout.entries = [entry for entry in layout.entries if entry.key != key]
    layout.entries.append(Entry(key, kind, value))
    return f"{key.decode()} is {str(value)[:40]}"


def _set_tensor(rng: Random, layout: Layout) -> str:
    tensor = rng.choice(layout.tensors)
    way = rng.choice(("name", "dims", "dim", "kind", "kind", "offset", "offset", "count"))
    if way == "name":
        names = [t.name for t in layout.tensors]
        tensor.name = rng.choice(
            (*names, b"blk.9.attn_q.weight", b"", b"\xff", b"a.b", b"blk.x.y.z")
        )
    elif way == "dims":
        tensor.dims = rng.choice(([], [0], tensor.dims[::-1], [*tensor.dims, 1], tensor.dims * 3))
    elif way == "dim":
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
    elif way == "kind":
        tensor.kind = rng.choice((*range(45), 255, 2**31))
    elif way == "offset":
        offsets = (rng.choice(layout.tensors).offset, tensor.offset + 1, tensor.offset + 32)
        tensor.offset = rng.choice((*offsets, len(layout.data), *_INTEGERS))
    else:
        tensor.count = rng.choice(_INTEGERS)
    return f"{tensor.name.decode('latin-1')}: {way}, {tensor.dims} {tensor.kind} {tensor.offset}"


def _set_head(rng: Random, layout: Layout) -> str:
    way = rng.choice(("version", "counts", "magic", "alignment", "cut", "data"))
    if way == "version":
        layout.version = rng.choice((0, 1, 2, 4, 3 << 24, 2**31))
    elif way == "counts":
        counts = [len(layout.tensors), len(layout.entries)]
        counts[rng.randrange(2)] += rng.choice((1, -1, *_INTEGERS))
        layout.counts = (counts[0], counts[1])
    elif way == "magic":
        layout.magic = rng.choice((b"FUGG", b"GGML", b"\x00" * 4, b"GGUG"))
    elif way == "alignment":
        layout.alignment = rng.choice((1, 8, 16, 64, 4096))
        declared = rng.choice((layout.alignment, 0, 3, 2**31))
        layout.entries.append(Entry(b"general.alignment", 4, declared))
    elif way == "cut":
        layout.data = layout.data[: rng.randrange(len(layout.data))]
    else:
        layout.data = mutate_bytes(rng, layout.data)[0]
    return way


def _number(rng: Random, kind: int) -> Any:
    return rng.choice(NUMBERS if SCALARS[kind] in "fd" else _INTEGERS)


_CHANGES = (*[_set_value] * 3, _set_type, _drop, _twice, *[_add] * 2, *[_set_tensor] * 3, _set_head)
