"""The records of `bundle.json`, with the range of every number.

They are checked when they are read and when they are written, names of files included: see
manifest_file and manifest_checks.
"""

from typing import Annotated, Literal

import msgspec

from edgelm.bundle.records.adapters import AdapterRecord, LowRankInput
from edgelm.bundle.records.embedding import EmbeddingRecord
from edgelm.bundle.records.gates import GateResult, SourceCheck
from edgelm.checkpoint.student import StudentRecord
from edgelm.quantize.precision import KvType, WeightPrecision
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.mixers import StateKind

Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
# Far above any model, and small enough that sums and products of a few stay in 64 bits.
Tokens = Annotated[int, msgspec.Meta(ge=2, le=1 << 24)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
ComputeCapability = Annotated[int, msgspec.Meta(ge=10, le=9999)]
TensorName = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Version = Annotated[str, msgspec.Meta(pattern=r"^(\d{1,9}(\.\d{1,9}){0,4})?$")]
# The version of an installed package may have letters behind its numbers.
BuiltVersion = Annotated[str, msgspec.Meta(pattern=r"^\d{1,9}\.\d{1,9}[\w.+-]{0,50}$")]
# The engines whose bundles are compiled before they run.
COMPILED = ("tensorrt", "tensorrt-rtx")
Target = Annotated[str, msgspec.Meta(max_length=200)]


class TensorContract(msgspec.Struct, frozen=True):
    """One graph input or output; named dimensions are strings."""

    name: TensorName
    dtype: str
    shape: tuple[int | str, ...]


class CacheLayer(msgspec.Struct, frozen=True):
    """The four tensor names of one layer's cache, and its heads if they are not the decoder's.

    `rows` and `window` are given for a layer with a sliding window whose cache does not hold all
    tokens: the graph keeps the newest of them, at least the window, in this many rows. Which ones
    these are is a rule of ONNX Runtime's GroupQueryAttention (edgelm.runtime.engines.window_state).
    """

    past_key: TensorName
    past_value: TensorName
    present_key: TensorName
    present_value: TensorName
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rows: Tokens | None = None
    window: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] | None = None


class StateTensor(msgspec.Struct, frozen=True):
    """What a layer without attention remembers of the tokens before: [1, *shape], zeros at first.

    The graph reads `past` and writes `present`, which is then the next run's past. Unlike rows of
    keys and values it cannot be cut back to fewer tokens: sessions return to an earlier snapshot.
    """

    layer: Annotated[int, msgspec.Meta(ge=0, le=1 << 12)]
    kind: StateKind
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: tuple[Size, ...]
    past: TensorName
    present: TensorName


class CacheContract(msgspec.Struct, frozen=True):
    """The key-value cache: [1, heads, capacity, head_dim] per layer.

    With `update` in_place the graph writes the new rows, and present is bound to the memory of
    past. With append present has only the new rows, [1, heads, T, head_dim], and the runtime
    copies them behind the old ones. `capacity` is fixed in the graph; None leaves it open, so that
    the cache can grow. `layers` are those with keys and values of their own, in their order;
    `states` belong to those without attention. Layers with `rows` have that many, whatever the
    capacity is.
    """

    dtype: KvType
    num_key_value_heads: Size
    head_dim: Size
    layers: tuple[CacheLayer, ...]
    update: Literal["in_place", "append"] = "in_place"
    capacity: Tokens | None = None
    states: tuple[StateTensor, ...] = ()

    def heads(self, layer: CacheLayer) -> tuple[int, int]:
        """A layer's key heads, and their channels."""
        keys = layer.num_key_value_heads or self.num_key_value_heads
        return keys, layer.head_dim or self.head_dim

    @property
    def layers_differ(self) -> bool:
        """Whether some layers have heads of other sizes than the decoder's."""
        return any(layer.num_key_value_heads or layer.head_dim for layer in self.layers)

    @property
    def cuts_windows(self) -> bool:
        """Whether some layers hold a window's tokens only."""
        return any(layer.rows is not None for layer in self.layers)


class GraphSegment(msgspec.Struct, frozen=True):
    """Consecutive layers of a graph in a file of their own: what it takes and gives, by name.

    `weight_bytes` are those of its matrices and tables, in the file that all segments share.
    """

    file: str
    inputs: tuple[TensorName, ...]
    outputs: tuple[TensorName, ...]
    weight_bytes: Bytes = 0


class GraphContract(msgspec.Struct, frozen=True):
    """How to run the graph.

    Roles of inputs; each dialect has some of them:

    tokens            int64 [1, T]   the tokens to process
    positions         int64 [1, T]   their positions, counted from 0
    past_length       int64 [1]      tokens in the cache before this run
    last_position     int32 [1]      position of the last of them, counted from 0
    total_length      int32 []       tokens in the cache after this run
    logits_positions  int64 [P]      which of the T rows the head computes
    cache_positions   int64 [rows]   0, 1, ...: attention reads this many rows of the cache, where
                                     all tokens are; a graph without this role reads them all

    and of outputs: logits float32 [1, P, vocab_size], or, of an embedding model, hidden float32
    [1, P, hidden_size].

    A model with a draft head gives both: hidden [1, T, hidden_size] is then that of all T rows,
    behind the final norm. Its graph has three segments, so that the head can use the first, the
    embedding, and the last, the output matrix: `embedded` float32 [1, T, hidden_size] and
    `selected` [1, P, hidden_size] pass between them. The graph of the head (`spec.draft_head`) goes
    between the two. It has embedded and hidden as inputs, both [1, T, hidden_size], and one
    output, hidden [1, P, hidden_size], which is what `selected` is.

    The graph of an assistant (`spec.assistant`) also has embedded and hidden as inputs, and logits
    and hidden [1, P, model_size] as outputs. It takes one token, and past_length is that token's
    position. It has no cache, but reads keys and values [1, heads, rows, head_dim] of its model by
    the roles past.LAYER.key and past.LAYER.value, where last_position is that of the last row.

    Where the first size of `tokens` is "B", a run takes B sequences: that is then also the first
    size of positions, past_length, last_position, logits and the cache, and total_length is that of
    the longest sequence. The ort and the standard dialect have such graphs. A run of several
    sequences takes one token of each, or, where no tokens come before, the same number of each: in
    the ort dialect with an int8 cache and fp32 activations at most 16.

    A graph may be cut into `segments`, which run one after the other and share the file `data`;
    `file` is then the first of them. `links` are the tensors that pass from one to a later one;
    every other input and output of a segment is one of the graph's.

    `low_rank` are optional inputs, which adapters are bound to; only the ort dialect has them.
    """

    file: str
    data: str
    dialect: str
    opsets: dict[str, Size]
    inputs: dict[str, TensorContract]
    outputs: dict[str, TensorContract]
    cache: CacheContract
    segments: tuple[GraphSegment, ...] = ()
    links: tuple[TensorContract, ...] = ()
    low_rank: tuple[LowRankInput, ...] = ()

    @property
    def takes_batches(self) -> bool:
        """Whether a run takes tokens of several sequences."""
        tokens = self.inputs.get("tokens")
        return tokens is not None and tokens.shape[:1] == ("B",)

    @property
    def parts(self) -> tuple[GraphSegment, ...]:
        """The segments, or the whole graph as one."""
        return self.segments or (GraphSegment(self.file, self.input_names, self.output_names),)

    @property
    def files(self) -> tuple[str, ...]:
        """The graph's files, the data last."""
        return (*(part.file for part in self.parts), self.data)

    @property
    def input_names(self) -> tuple[str, ...]:
        """All inputs, those of the cache included."""
        caches = (name for one in self.cache.layers for name in (one.past_key, one.past_value))
        states = (state.past for state in self.cache.states)
        return (*(one.name for one in self.inputs.values()), *caches, *states)

    @property
    def output_names(self) -> tuple[str, ...]:
        """All outputs, those of the cache included."""
        caches = (
            name for one in self.cache.layers for name in (one.present_key, one.present_value)
        )
        states = (state.present for state in self.cache.states)
        return (*(one.name for one in self.outputs.values()), *caches, *states)


class Limits(msgspec.Struct, frozen=True):
    """The limits that the graph was built for."""

    context: Tokens
    prefill_chunk: Size


class Lineage(msgspec.Struct, frozen=True):
    """Origin of the weights.

    `source` names the model. `path` is its location at export, for tools that need it again on the
    same machine (they check the hash); None for a hub id. `adapter` is the name of a LoRA that was
    merged into the weights; the hash then covers both. `calibration_sha256` is the hash of the text
    that quantization was calibrated on; None where nothing was.
    """

    source: str
    sha256: str
    path: str | None = None
    revision: str | None = None
    license: str | None = None
    compress: StudentRecord | None = None
    adapter: str | None = None
    calibration_sha256: str | None = None


class FileEntry(msgspec.Struct, frozen=True):
    """Size and hash of one file of the bundle."""

    bytes: Bytes
    sha256: str


class EngineRequirement(msgspec.Struct, frozen=True):
    """The engine that runs the graph: `onnxruntime[-cuda]`, `tensorrt` or `tensorrt-rtx`.

    `version` is the oldest one that can. `compute_capabilities` are the GPUs that the graph is for,
    times ten (87 is 8.7; in JSON `sms`); empty means any. TensorRT's engines are compiled from the
    graph: see Manifest.engines.
    """

    name: str
    version: Version = ""
    compute_capabilities: tuple[ComputeCapability, ...] = msgspec.field(default=(), name="sms")


class EngineFile(msgspec.Struct, frozen=True):
    """A compiled engine on disk, and the file that stores its kernels compiled at run time."""

    file: str
    runtime_cache: str = ""


class CompiledEngine(msgspec.Struct, frozen=True):
    """An engine compiled from the graph, with everything needed to compile it again.

    `version` is that of TensorRT or TensorRT-RTX, `compute_capabilities` (in JSON `sms`) the GPUs
    that it runs on, `graph_sha256` the hash of its graph. Its first profile takes 1 to
    `prefill_chunk` tokens, the second one, if there is one, a single token. `runtime_cache` names
    the file that stores kernels compiled at run time. `machine` and `power_mode` say where the
    engine was compiled. Of a graph in segments it is the first segment's, and `later_segments` are
    those of the others.
    """

    file: str
    name: str
    version: BuiltVersion
    compute_capabilities: tuple[ComputeCapability, ...] = msgspec.field(name="sms")
    graph_sha256: str
    profiles: Annotated[int, msgspec.Meta(ge=1, le=100)]
    build_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    machine: str
    power_mode: str = ""
    runtime_cache: str = ""
    gate: GateResult | None = None
    later_segments: tuple[EngineFile, ...] = ()

    @property
    def parts(self) -> tuple[EngineFile, ...]:
        """One for each of the graph's parts."""
        return (EngineFile(self.file, self.runtime_cache), *self.later_segments)

    @property
    def files(self) -> tuple[str, ...]:
        """The compiled files, without those for kernels compiled at run time."""
        return tuple(part.file for part in self.parts)


class GraphCheck(msgspec.Struct, frozen=True):
    """The graph that the gate measured.

    `graph_sha256` is the graph that engines are compiled from, `checked_sha256` the one whose
    logits were compared on a CPU. They differ where the CPU has no kernel for a type: then the
    checked graph is the same one with its weights `dequantized` to fp32 (in JSON `widened`).
    """

    graph_sha256: str
    checked_sha256: str
    dequantized: bool = msgspec.field(default=False, name="widened")


class Manifest(msgspec.Struct, frozen=True):
    """The contents of `bundle.json`."""

    schema_version: int
    edgelm_version: str
    created: str
    target: Target
    spec: DecoderSpec
    precision: dict[str, WeightPrecision]
    kv: KvType
    weight_bytes: Bytes
    limits: Limits
    gate: GateResult | None
    lineage: Lineage
    graph: GraphContract
    files: dict[str, FileEntry]
    engine: EngineRequirement = EngineRequirement("onnxruntime")
    engines: tuple[CompiledEngine, ...] = ()
    check: GraphCheck | None = None
    source: SourceCheck | None = None
    embedding: EmbeddingRecord | None = None
    adapters: tuple[AdapterRecord, ...] = ()

    @property
    def compiles(self) -> bool:
        """Whether the graph must be compiled before it runs."""
        return self.engine.name in COMPILED

    @property
    def pending(self) -> bool:
        """Whether the graph still has to be compiled."""
        return self.compiles and not self.engines
