"""Memory that a decoder needs besides weights and cache: while running, and while it is built."""

from collections.abc import Mapping

from edgelm.bundle import Manifest
from edgelm.devices.planner.memory.snapshots import SNAPSHOTS
from edgelm.devices.planner.memory.window_rows import cache_bytes
from edgelm.devices.profile import load_profile
from edgelm.devices.profile_tables import Engine
from edgelm.errors import UnknownName
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.draft_head import hidden_rows
from edgelm.spec.groups import PER_LAYER_EMBEDDING

_GATE_ROWS = 3 * 256  # rows of logits during the gate: source, export, difference


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
        return 2 * (rows * widest + 2 * elements) + 4 * spec.vocab_size
    scores = spec.num_attention_heads * context
    dequantized = 4 * elements
    return 4 * (rows * (widest + scores) + dequantized + spec.vocab_size)


def packed_bytes(engine: Engine, total: int, looked_up: float) -> int:
    """What an engine's own copies of matrices take; it has none of tables that it looks up in."""
    return int((engine.weight_copies - 1) * max(0.0, total - looked_up))


def sequence_state_bytes(spec: DecoderSpec, engine: str) -> int:
    """What a session holds of one sequence's layers without attention, however long it is.

    The state that a run reads, the one that it writes, and snapshots to return to. ONNX Runtime's
    operators write the state in place. With a draft head, its model holds hidden states for it, in
    memory for twice as many.
    """
    states = 1 if engine == "onnxruntime" else 2
    hidden = 8 * hidden_rows(spec.hidden_size) * spec.hidden_size if spec.draft_head else 0
    return (states + SNAPSHOTS) * spec.state_bytes(4) + hidden


def loaded_bytes(manifest: Manifest, context: int, *, sequences: int = 1) -> int:
    """Estimated peak memory of a bundle: a cache of `context` tokens for each of its sequences.

    Sequences share the workspace: the engine runs for one at a time.
    """
    spec, kv = manifest.spec, manifest.kv
    engine = _engine(manifest)
    chunk = manifest.limits.prefill_chunk
    workspace = workspace_bytes(
        spec, kv=kv, context=context, chunk=chunk, engine=manifest.engine.name
    )
    looked_up = 0.0
    if (precision := manifest.precision.get(PER_LAYER_EMBEDDING)) is not None:
        looked_up = spec.per_layer_embedding_parameters * precision.bits_per_weight / 8
    packed = packed_bytes(engine, manifest.weight_bytes, looked_up)
    adapters = sum(manifest.files[one.file].bytes for one in manifest.adapters)
    weights = manifest.weight_bytes + packed + adapters
    cache = cache_bytes(spec, kv, context, _cut_layers(manifest))
    cache = (cache + sequence_state_bytes(spec, manifest.engine.name)) * sequences
    return int(engine.runtime_bytes.value) + weights + cache + workspace


def _cut_layers(manifest: Manifest) -> Mapping[int, int]:
    """Rows of the layers whose cache holds a window only, by the layer's index."""
    layers = zip(manifest.spec.cache_layers, manifest.graph.cache.layers, strict=True)
    return {index: layer.rows for index, layer in layers if layer.rows is not None}


def draft_bytes(draft: Manifest, context: int, *, sequences: int = 1) -> int:
    """What a draft model adds to the memory of the bundle that it drafts for."""
    context = min(context, draft.limits.context)
    runtime = int(_engine(draft).runtime_bytes.value)
    return loaded_bytes(draft, context, sequences=sequences) - runtime


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
