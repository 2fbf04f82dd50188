"""Memory that a decoder needs besides weights and cache: while running, and while it is built."""

from collections.abc import Mapping

from edgelm.bundle import Manifest
from edgelm.devices.attention_kernels import expands_keys
from edgelm.devices.planner.memory.packed_weights import packing_bytes, packs, session_bytes
from edgelm.devices.planner.memory.snapshots import SNAPSHOTS
from edgelm.devices.planner.memory.window_rows import cache_bytes
from edgelm.devices.profile import load_profile
from edgelm.devices.profile_tables import Engine
from edgelm.errors import UnknownName
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType
from edgelm.spec.assistant import STATES
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.draft_head import hidden_rows
from edgelm.spec.groups import HEAD

_GATE_ROWS = 3 * 256  # rows of logits during the gate: source, export, difference
# Blocks of a run have many sizes, and glibc's heap keeps the holes between them. Each layer leaves
# some: a run of one layer takes what it holds at its peak, one of 16 and more three times that.
_HOLES_PER_LAYER, _MOST_HOLES = 1 / 8, 2
# Attention holds scores by tiles, a tile for each thread (measured with two).
_TILES = 6_000_000
# Of a tokenizer, for each token: what stays, and what is needed while its file is read.
_TOKEN_BYTES, _TOKEN_READING_BYTES = 300, 1450


def workspace_bytes(
    spec: DecoderSpec, *, kv: KvType, context: int, chunk: int, engine: str = "onnxruntime"
) -> int:
    """Peak memory of activations: one prefill chunk with a full cache.

    On a CPU they are fp32, as is a layer's 8-bit cache while it is read and written. GPU engines
    use 16 bits and never hold the scores of a whole chunk (fused attention).
    """
    rows = min(chunk, context)
    widest = spec.mixer_width + 4 * spec.hidden_size + 3 * spec.mlp_width
    widest += 3 * spec.per_layer_width  # those of all layers, normed and summed
    if spec.altup is not None:  # the streams before a layer and behind it
        widest += 2 * spec.altup.streams * spec.hidden_size
    widths = [spec.heads(layer).kv_size for layer in spec.layers if layer.attends]
    elements = context * max(widths) if kv in EIGHT_BIT_KV else 0  # of keys, and of values
    if engine != "onnxruntime":
        expanded = _expanded_elements(spec, rows, context) if engine == "onnxruntime-cuda" else 0
        return 2 * (rows * widest + 2 * elements + expanded) + 4 * spec.vocab_size
    scores = min(_TILES, 4 * rows * spec.num_attention_heads * context)
    live = 4 * (rows * widest + 4 * elements + spec.vocab_size) + scores
    holes = min(_MOST_HOLES, _HOLES_PER_LAYER * spec.num_hidden_layers)
    return int((1 + holes) * live)


def _expanded_elements(spec: DecoderSpec, rows: int, context: int) -> int:
    """16-bit elements of the widest layer's keys and values, copied for each query head.

    Its kernel sums the outputs of a chunk in fp32 besides.
    """
    kinds = {spec.heads(layer) for layer in spec.layers if layer.attends}
    widths = [one.queries * one.dim for one in kinds if expands_keys(one)]
    return 2 * (context + rows) * max(widths, default=0)


def host_bytes(spec: DecoderSpec, engine: str) -> int:
    """What a process on a CPU holds of the tokenizer; a GPU engine's runtime includes it."""
    return _TOKEN_BYTES * spec.vocab_size if engine == "onnxruntime" else 0


def reading_bytes(spec: DecoderSpec, engine: str) -> int:
    """The most that is needed before weights are loaded, while the tokenizer is read."""
    return _TOKEN_READING_BYTES * spec.vocab_size if engine == "onnxruntime" else 0


def packed_bytes(engine: Engine, total: int) -> int:
    """What an engine's own copies of the weights take, where it does not pack them by layout."""
    return int((engine.weight_copies - 1) * total)


def sequence_state_bytes(spec: DecoderSpec, engine: str) -> int:
    """What a session holds of one sequence's layers without attention, however long it is.

    The state that a run reads, the one that it writes, and snapshots to return to. ONNX Runtime's
    operators write the state in place. With a draft head or an assistant, its model holds hidden
    states for it, in memory for twice as many.
    """
    states = 1 if engine == "onnxruntime" else 2
    hidden = 8 * hidden_rows(spec.hidden_size) * spec.hidden_size if spec.draft_head else 0
    if spec.assistant is not None:
        hidden = 8 * STATES * spec.assistant.model_size
    return (states + SNAPSHOTS) * spec.state_bytes(4) + hidden


def loaded_bytes(manifest: Manifest, context: int, *, sequences: int = 1) -> int:
    """Estimated peak memory of a bundle: a cache of `context` tokens for each of its sequences.

    Sequences share the workspace: the engine runs for one at a time.
    """
    name, spec = manifest.engine.name, manifest.spec
    runtime = int(_engine(manifest).runtime_bytes.value)
    cache, workspace = _running_bytes(manifest, context, sequences)
    loaded = host_bytes(spec, name) + _weight_bytes(manifest) + cache + workspace
    return runtime + max(reading_bytes(spec, name), loaded)


def _weight_bytes(manifest: Manifest) -> int:
    """Weights, adapters and the graph of a session, without its cache."""
    weights = manifest.weight_bytes
    weights += sum(manifest.files[one.file].bytes for one in manifest.adapters)
    if not packs(manifest.engine.name):
        return weights + packed_bytes(_engine(manifest), manifest.weight_bytes)
    return weights + packing_bytes(manifest) + session_bytes(manifest.spec)


def _running_bytes(manifest: Manifest, context: int, sequences: int) -> tuple[int, int]:
    """The caches of all sequences, and the workspace that they share.

    While weights are loaded there is nothing in the cache yet, but the head may be mapped beside
    its packed copy.
    """
    spec, kv, name = manifest.spec, manifest.kv, manifest.engine.name
    cache = cache_bytes(spec, kv, context, _cut_layers(manifest))
    cache = (cache + sequence_state_bytes(spec, name)) * sequences
    chunk = manifest.limits.prefill_chunk
    workspace = workspace_bytes(spec, kv=kv, context=context, chunk=chunk, engine=name)
    head = manifest.precision.get(HEAD)
    if packs(name) and head is not None and not spec.draft_head and not spec.looks_up_head:
        mapped = int(spec.embedding_parameters * head.bits_per_weight / 8)
        workspace = max(workspace, mapped - cache)
    return cache, workspace


def _cut_layers(manifest: Manifest) -> Mapping[int, int]:
    """Rows of the layers whose cache holds a window only, by the layer's index."""
    layers = zip(manifest.spec.cache_layers, manifest.graph.cache.layers, strict=True)
    return {index: layer.rows for index, layer in layers if layer.rows is not None}


def draft_bytes(draft: Manifest, manifest: Manifest, context: int, *, sequences: int = 1) -> int:
    """What a draft model adds to the memory of the bundle that it drafts for.

    Both share a tokenizer, and one workspace, since they run one after the other.

    Args:
        draft: the draft model's manifest.
        manifest: that of the bundle.
        context: tokens of the bundle's cache; the draft's has as many, or its limit.
        sequences: generations that can run at a time.
    """
    own = min(context, draft.limits.context)
    cache, workspace = _running_bytes(draft, own, sequences)
    _, shared = _running_bytes(manifest, context, sequences)
    return _weight_bytes(draft) + cache + max(0, workspace - shared)


def _engine(manifest: Manifest) -> Engine:
    """The engine of the bundle's target, or of this machine if the target is unknown here."""
    try:
        engines = load_profile(manifest.target).engines
    except UnknownName:
        engines = load_profile("cpu").engines
    return next((one for one in engines if one.dialect == manifest.graph.dialect), engines[0])


def export_bytes(spec: DecoderSpec, total: int) -> int:
    """Peak memory of the export, on the machine that runs it."""
    # Several fp32 copies of the largest matrix, and the gate's rows of logits.
    experts = (2 * one.experts * one.size * spec.hidden_size for one in spec.mixtures)
    dense = spec.hidden_size * 2 * spec.intermediate_size
    largest = max(spec.embedding_parameters, dense, *experts)
    # A per-layer embedding is read in parts; its levels are in memory twice or three times.
    table = 4 * spec.per_layer_embedding_parameters
    return 12 * largest + table + 4 * _GATE_ROWS * spec.vocab_size + total
