"""The bundle: the folder that export writes and that runtime and bench read.

`bundle.json` is the manifest. It names every file with its SHA-256 and says, role by role, which
graph input and output is which: readers go by roles and never by a name they expect.
docs/bundle.md is the format's description.
"""

from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from edgelm.errors import BadBundle
from edgelm.gates import GateResult, SourceCheck
from edgelm.hashing import file_sha256
from edgelm.precision import KvType, WeightPrecision
from edgelm.spec import DecoderSpec
from edgelm.student import StudentRecord

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"


class TensorContract(msgspec.Struct, frozen=True):
    """One graph input or output; named dimensions are strings."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class CacheLayer(msgspec.Struct, frozen=True):
    """The four names of one layer's cache."""

    past_key: str
    past_value: str
    present_key: str
    present_value: str


class CacheContract(msgspec.Struct, frozen=True):
    """The key-value cache: [1, heads, capacity, head_dim] per layer.

    With `update` in_place the graph writes the new rows, and present is bound to the memory of
    past. With append present holds only the new rows, [1, heads, T, head_dim], and the runtime
    copies them behind the old ones. A `capacity` is fixed in the graph; None leaves it open.
    """

    dtype: KvType
    num_key_value_heads: int
    head_dim: int
    layers: tuple[CacheLayer, ...]
    update: Literal["in_place", "append"] = "in_place"
    capacity: int | None = None


class GraphContract(msgspec.Struct, frozen=True):
    """How to run the graph.

    Roles of inputs; a dialect has those that it needs:

    tokens            int64 [1, T]   the tokens to process
    positions         int64 [1, T]   their positions, counted from 0
    past_length       int64 [1]      tokens in the cache before this run
    last_position     int32 [1]      position of the last of them, counted from 0
    total_length      int32 []       tokens in the cache after this run
    logits_positions  int64 [P]      which of the T rows the head computes

    and of outputs: logits float32 [1, P, vocab_size].
    """

    file: str
    data: str
    dialect: str
    opsets: dict[str, int]
    inputs: dict[str, TensorContract]
    outputs: dict[str, TensorContract]
    cache: CacheContract


class Limits(msgspec.Struct, frozen=True):
    """What the graph was made for."""

    context: int
    prefill_chunk: int


class Lineage(msgspec.Struct, frozen=True):
    """Where the weights come from.

    `source` names the model; `path` is where it lay when it was exported, for tools that need it
    again on the same machine (they check the hash), and None for a hub id.
    """

    source: str
    sha256: str
    path: str | None = None
    revision: str | None = None
    license: str | None = None
    compress: StudentRecord | None = None


class FileEntry(msgspec.Struct, frozen=True):
    """Size and hash of one file of the bundle."""

    bytes: int
    sha256: str


class EngineNeed(msgspec.Struct, frozen=True):
    """What runs the graph: `onnxruntime`, `onnxruntime-cuda`, `tensorrt` or `tensorrt-rtx`.

    `version` is the oldest that will do, and `sms` the compute capabilities (times ten) it is for;
    empty means any. An engine of TensorRT is compiled from the graph: see Manifest.engines.
    """

    name: str
    version: str = ""
    sms: tuple[int, ...] = ()


class CompiledEngine(msgspec.Struct, frozen=True):
    """An engine compiled from the graph, and how: enough to compile it again.

    `version` is that of TensorRT or TensorRT-RTX, `sms` the GPUs it runs on, `graph_sha256` the
    graph it was compiled from. Its first profile takes 1 to `prefill_chunk` tokens; a second one,
    where there is one, exactly one. `runtime_cache` names the file in which kernels that are made
    at run time are kept. `machine` and `power_mode` say where it was compiled.
    """

    file: str
    name: str
    version: str
    sms: tuple[int, ...]
    graph_sha256: str
    profiles: int
    build_seconds: float
    machine: str
    power_mode: str = ""
    runtime_cache: str = ""
    gate: GateResult | None = None


class GraphCheck(msgspec.Struct, frozen=True):
    """Which graph the gate's figures are of.

    `graph_sha256` is the graph that engines are compiled from, `checked_sha256` the one whose
    logits were compared on a CPU. Where the CPU has no kernel for a type they differ: `widened`
    says that the checked graph was the same with weights dequantized to fp32.
    """

    graph_sha256: str
    checked_sha256: str
    widened: bool = False


class Manifest(msgspec.Struct, frozen=True):
    """The contents of `bundle.json`."""

    schema_version: int
    edgelm_version: str
    created: str
    target: str
    spec: DecoderSpec
    precision: dict[str, WeightPrecision]
    kv: KvType
    weight_bytes: int
    limits: Limits
    gate: GateResult | None
    lineage: Lineage
    graph: GraphContract
    files: dict[str, FileEntry]
    engine: EngineNeed = EngineNeed("onnxruntime")
    engines: tuple[CompiledEngine, ...] = ()
    check: GraphCheck | None = None
    source: SourceCheck | None = None

    @property
    def compiles(self) -> bool:
        """Whether the graph must be compiled before it runs."""
        return self.engine.name.startswith("tensorrt")

    @property
    def pending(self) -> bool:
        """Whether it must be compiled and was not yet."""
        return self.compiles and not self.engines


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`; call it last, since a folder without one is no bundle."""
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """The text of `bundle.json`."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read `bundle.json`.

    Raises:
        BadBundle: no bundle, a newer schema, or a field that is missing or of the wrong type.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadBundle(
            f"{folder} is no bundle (it has no {MANIFEST}); make one with: edge-export MODEL -o "
            f"{folder}"
        ) from None
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise BadBundle(
                f"{path} has schema version {version}, this edgelm reads up to {SCHEMA_VERSION}; "
                "upgrade edgelm (pip install -U edgelm)"
            )
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise BadBundle(f"{path} is damaged: {error}; export the model again") from None


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Entries for every file below `folder` except the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def graph_sha256(folder: Path, graph: GraphContract) -> str:
    """One hash of a graph file and its weights."""
    parts = "".join(file_sha256(folder / name) for name in (graph.file, graph.data))
    return sha256(parts.encode()).hexdigest()


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise BadBundle unless every file is there, unchanged, and inside the folder."""
    root = folder.resolve()
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(root):
            raise BadBundle(f"{folder}: {name!r} lies outside the bundle; do not use this bundle")
        if not path.is_file():
            raise BadBundle(f"{folder} lacks {name}; copy or export it again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BadBundle(
                f"{path} has {size} bytes, the manifest says {entry.bytes}: truncated or changed; "
                "copy or export it again"
            )
        if file_sha256(path) != entry.sha256:
            raise BadBundle(
                f"{path} does not match its SHA-256 in {MANIFEST}: damaged or tampered with; "
                "copy or export it again"
            )
    for name in (manifest.graph.file, manifest.graph.data, "tokenizer.json"):
        if name not in manifest.files:
            raise BadBundle(f"{folder}: {MANIFEST} lists no hash for {name}; export it again")


class _Version(msgspec.Struct):
    schema_version: int
