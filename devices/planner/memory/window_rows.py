"""The rows that layers with a sliding window keep in ONNX Runtime's cache on a CPU.

Its GroupQueryAttention can keep a window and some additional rows instead of all tokens
(`sliding_window_cache`). Rows that it drops cannot be had back, so that a session also holds
snapshots of what is left: a layer's cache is cut only where both together take no more memory than
all tokens would. Other engines read a cache of all tokens: they have no such kernel, or, CUDA's,
one that the runtime does not use (docs/decisions/key-value-rings.md).
"""

from collections.abc import Collection, Mapping

from edgelm.devices.planner.memory.snapshots import SNAPSHOTS
from edgelm.quantize.precision import KV_BYTES, KvType
from edgelm.spec.decoder import DecoderSpec

# Beyond the window: rows are dropped together, this many and one at a time. Moving what stays then
# costs little, and the tokens that a speculative step rejects can mostly be cut off.
_MOST_SLACK, _LEAST_SLACK = 128, 16


def cuts_windows(engine: str, kv: KvType) -> bool:
    """Whether an engine's cache of this type keeps windows only; int8 and fp32 were run."""
    return engine == "onnxruntime" and kv in ("int8", "fp32")


def window_rows(spec: DecoderSpec, context: int, lent: Collection[int] = ()) -> dict[int, int]:
    """Rows of the layers that keep fewer than `context`, by the layer's index.

    A layer whose keys and values others read keeps them all, and so does an embedding model, which
    holds nothing from one text to the next. An assistant reads the layers `lent`.
    """
    read = {*lent, *(layer.shares_kv_of for layer in spec.layers)}
    rows: dict[int, int] = {}
    for index in spec.cache_layers:
        window = spec.layers[index].window
        if window is None or index in read or not spec.has_head:
            continue
        slack = min(_MOST_SLACK, max(_LEAST_SLACK, window))
        if (1 + SNAPSHOTS) * (window + slack) <= context:
            rows[index] = window + slack
    return rows


def cache_bytes(spec: DecoderSpec, kv: KvType, context: int, rows: Mapping[int, int]) -> int:
    """Memory of one sequence's keys and values, snapshots of the layers in `rows` included."""
    total = 0
    for index in spec.cache_layers:
        held = (1 + SNAPSHOTS) * rows[index] if index in rows else context
        total += 2 * spec.heads(spec.layers[index]).kv_size * held
    return int(total * KV_BYTES[kv])
