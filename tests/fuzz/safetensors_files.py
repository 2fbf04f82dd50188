"""Folders of safetensors: headers, index, data changed; values are those of safetensors."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open

from edgelm.checkpoint.source import open_checkpoint
from tests.checkpoints.models import tiny_model
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import NUMBERS, TEXTS, dump, mutate

_INDEX = "model.safetensors.index.json"
_SHARED: list[Any] = [
    *("F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x", None, 0),
]
_LENGTHS = [int(n) for n in NUMBERS if n == n and 0 <= n < 2**64]
_SHARDS = (
    *("../outside.safetensors", "/etc/passwd", "", ".", "..", "missing", "a\x00b", "config.json"),
    *("model-00002-of-00002.safetensors", "model.safetensors", "link.safetensors", "/dev/zero"),
)
Tree = dict[str, Any]


class SafetensorsFiles(Kind):
    """What opens has the names, shapes and values that safetensors itself reads."""

    name = "safetensors"

    def prepare(self, folder: Path) -> None:
        whole = tiny_model("llama", num_hidden_layers=2, hidden_size=32)
        whole.save_pretrained(folder / "whole")
        whole.save_pretrained(folder / "sharded", max_shard_size="60KB")
        self.sources = [folder / "whole", folder / "sharded"]
        for source in self.sources:
            open_checkpoint(source)

    def make(self, rng: Random, folder: Path) -> Case:
        model = folder / "model"
        source = rng.choice(self.sources)
        shutil.copytree(source, model)
        shutil.copyfile(self.sources[0] / "model.safetensors", folder / "outside.safetensors")
        if source.name == "sharded" and rng.random() < 0.5:
            return Case(_index(rng, model))
        path = rng.choice(sorted(model.glob("*.safetensors")))
        change = rng.choice((_header, _header, _entry, _entry, _entry, _bytes, _length, _second))
        return Case(f"{path.name}: {change(rng, path)}")

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        model = folder / "model"
        checkpoint = open_checkpoint(model)
        ours = {name: checkpoint.tensor(name) for name in checkpoint.shapes}
        for path in checkpoint.weight_files:
            # Links are fine: the hub's cache is made of them. Names that lead elsewhere are not.
            if path.parent != model or path.name in ("", "..", "."):
                raise Wrong(f"{path} is outside the folder")
        reference()
        theirs = _read(model)
        for name, tensor in ours.items():
            # Base models are stored without the prefix.
            other = theirs.get(name, theirs.get(name.removeprefix("model.")))
            if other is None:
                raise Wrong(f"{name} is not in the file")
            if tensor.dtype != other.dtype or not torch.equal(tensor, other):
                raise Wrong(f"{name} differs from what safetensors reads")
        return "equal"


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, from the files that transformers would choose."""
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.is_file():
        names = {whole.name}
    else:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        with safe_open(folder / name, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return tensors


def _split(path: Path) -> tuple[Tree, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def _header(rng: Random, path: Path) -> str:
    """Any value of the header's JSON, which is now and then not quite JSON."""
    header, data = _split(path)
    notes = [mutate(rng, header) for _ in range(rng.choice((1, 1, 2)))]
    text, odd = dump(rng, header)
    _write(path, text, data)
    return "; ".join([*notes, odd])


def _entry(rng: Random, path: Path) -> str:
    """A field of one tensor, plausibly wrong."""
    header, data = _split(path)
    name, other = rng.choice(sorted(header)), rng.choice(sorted(header))
    entry, theirs = header[name], header[other]
    if name == "__metadata__" or other == "__metadata__":
        header["__metadata__"] = rng.choice((None, [], {"a": 1}, "x", {"format": "np"}))
    else:
        start, end = entry["data_offsets"]
        ways = {
            "dtype": {"dtype": rng.choice(_SHARED)},
            "offsets": {"data_offsets": rng.choice((theirs["data_offsets"], [end, start], [0, 0]))},
            "end": {"data_offsets": [start, rng.choice((end + 4, end - 1, *_LENGTHS))]},
            "start": {"data_offsets": [rng.choice((start + 4, start - 4, -1, 2**62)), end]},
            "shape": {"shape": rng.choice((theirs["shape"], entry["shape"][::-1], [], [0], [-1]))},
            "large": {"shape": rng.choice(([2**32, 2**32], [2**63], [1e3], ["1"], [True], None))},
            "more": {"extra": 1},
        }
        way = rng.choice(list(ways))
        entry |= ways[way]
        name = f"{name} {way} {ways[way]}"
    _write(path, json.dumps(header).encode(), data)
    return name[:100]


def _bytes(rng: Random, path: Path) -> str:
    data, note = mutate_bytes(rng, path.read_bytes(), within=rng.choice((16, 4000, None)))
    path.write_bytes(data)
    return note


def _length(rng: Random, path: Path) -> str:
    length = rng.choice(_LENGTHS)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    return f"header of {length} bytes"


def _second(rng: Random, path: Path) -> str:
    """A second file beside it: a stray one must not be read, nor a name be met twice."""
    name = rng.choice(("consolidated", "adapter_model", "model", "z", "optimizer"))
    beside = path.with_name(f"{name}.safetensors")
    header, data = _split(path)
    _write(beside, json.dumps(header).encode(), bytes(len(data)))
    return f"{beside.name} with zeros beside it"


def _index(rng: Random, folder: Path) -> str:
    path = folder / _INDEX
    index = json.loads(path.read_bytes())
    if rng.random() < 0.5:
        weights = index["weight_map"]
        name = rng.choice(sorted(weights))
        weights[name] = shard = rng.choice((*_SHARDS, *TEXTS[:8]))
        (folder / "link.safetensors").symlink_to("../outside.safetensors")
        path.write_text(json.dumps(index))
        return f"index: {name} is in {shard!r}"
    note = mutate(rng, index)
    text, odd = dump(rng, index)
    path.write_bytes(text)
    return f"index: {note} {odd}".rstrip()
