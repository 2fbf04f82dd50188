"""The cost model: the time of a decoder on a device. Pure arithmetic, no fitting, no files.

A decoded token reads every weight and the cache once, and each layer adds a fixed time that does
not depend on bandwidth (kernel launches, norms, synchronization). A prompt is bound by matrix
products. (Roofline: Williams, Waterman and Patterson 2009; the overhead per layer follows from
published rates of small models.) All times are estimates in milliseconds: `Estimate` has the range
that contained 80% of published measurements.
"""

import msgspec

from edgelm.devices.planner.cost_model.work import Work
from edgelm.devices.profile_tables import PowerMode
from edgelm.planning import Estimate

# A memory-bound board draws less than its power cap: 0.44 to 0.83 of it in published rows.
_SHARE_OF_CAP = (0.4, 0.7, 1.0)
# Kernels that unpack 4- or 8-bit weights before multiplying use the warp-level instruction. It does
# this many dense FP16 operations per clock and multiprocessor on every generation since Ampere;
# the faster units of newer chips need both factors in their own narrow type.
_WARP_LEVEL = 2048
# Without tensor cores it does this many: the kernels that multiply a few tokens with 4-bit weights.
_VECTOR = 256
WEIGHT_ONLY = "weight-only"
# Reading overlaps with unpacking, so that the slower of the two takes most of the time: the
# exponent of a smooth maximum.
OVERLAP = 4


class Coefficients(msgspec.Struct, frozen=True):
    """How much of a device's peak rates an engine reaches.

    `bandwidth` and `cache_bandwidth` are shares of the read bandwidth for weights and cache,
    `compute` is the share of the dense peak that long prompts reach and `attention` that share
    for attention. `unpack` is clock cycles of one multiprocessor per byte of weights, which pass
    while they are read.
    `layer_us` is the overhead of a layer in a decoded token, `prompt_layers` the ratio of a
    prompt's overhead to it. `step_us` is the fixed cost of a decoding step.
    `recurrent_us` is the cost of one token in one recurrent layer of a prompt, at a clock of
    1 GHz and one multiprocessor.

    Every further sequence of a batch costs `batch_layer_us` in each layer and its own matrix
    products: with unpacked weights `batch_vector` times as long as vector instructions need at
    their peak, otherwise `batch_matrix` times as long as the dense peak. Bands are factors of
    time: (low, high).
    """

    bandwidth: float
    cache_bandwidth: float
    compute: float
    attention: float
    layer_us: float
    step_us: float = 0.0
    unpack: float = 0.0
    prompt_layers: float = 1.0
    recurrent_us: float = 0.0
    batch_layer_us: float = 0.0
    batch_vector: float = 0.0
    batch_matrix: float = 0.0
    decode_band: tuple[float, float] = (0.5, 2.0)
    batch_band: tuple[float, float] = (0.5, 2.0)
    prefill_band: tuple[float, float] = (0.5, 2.0)
    source: str = ""


def decode_ms(
    work: Work,
    mode: PowerMode,
    how: Coefficients,
    *,
    depth: float,
    batch: int = 1,
    arithmetic: str = WEIGHT_ONLY,
) -> Estimate:
    """Time of one decoding step of `batch` sequences that read `depth` positions each."""
    parts = decode_parts(work, mode, how, depth=depth, batch=batch, arithmetic=arithmetic)
    return _within(sum(parts.values()), how.decode_band if batch == 1 else how.batch_band)


def decode_parts(
    work: Work,
    mode: PowerMode,
    how: Coefficients,
    *,
    depth: float,
    batch: int = 1,
    arithmetic: str = WEIGHT_ONLY,
) -> dict[str, float]:
    """The parts of a decoding step's time, in milliseconds."""
    bandwidth = mode.attainable_gb_s * 1e6  # bytes per millisecond
    weights = work.linear_bytes + work.head_bytes
    if work.experts:
        weights = work.prompt_bytes(batch)
    parts = {
        "weights": overlapped(weights / bandwidth / how.bandwidth, _unpack_ms(weights, mode, how)),
        "cache": batch * work.cache_bytes(depth) / bandwidth / how.cache_bandwidth,
        "layers": (work.layers * how.layer_us + how.step_us) / 1e3,
    }
    if batch > 1:
        more = batch_parts(work, mode, how, batch=batch, arithmetic=arithmetic)
        parts["batch"] = sum(more.values())
    return parts


def batch_parts(
    work: Work, mode: PowerMode, how: Coefficients, *, batch: int, arithmetic: str
) -> dict[str, float]:
    """The parts of a step's time that further sequences add, besides their caches."""
    more = batch - 1
    products = 2.0 * more * (work.linear_parameters + work.head_parameters)
    vector = matrix = 0.0
    if arithmetic == WEIGHT_ONLY and _cycles(mode):
        vector = products / (_VECTOR * _cycles(mode))
    else:
        matrix = products / (peak_tflops(mode, arithmetic) * 1e9)
    return {
        "layers": more * work.layers * how.batch_layer_us / 1e3,
        "vector": vector * how.batch_vector,
        "matrix": matrix * how.batch_matrix,
    }


def overlapped(read: float, unpack: float) -> float:
    """The time of two things that happen at once: the longer one, and a bit more where they tie."""
    longer = max(read, unpack)
    if not longer:
        return 0.0
    return float(
        longer * ((read / longer) ** OVERLAP + (unpack / longer) ** OVERLAP) ** (1 / OVERLAP)
    )


def prefill_ms(
    work: Work,
    mode: PowerMode,
    how: Coefficients,
    *,
    tokens: float,
    arithmetic: str,
    pairs: float | None = None,
    prompts: int = 1,
) -> Estimate:
    """Time of `prompts` prompts of `tokens` tokens each, up to the logits of the last token.

    `arithmetic` is the type of the matrix products: a key of the mode's `dense_tflops`, or
    `WEIGHT_ONLY` for 16-bit products with weights that are unpacked first. `pairs` are the pairs
    of query and key of one prompt, times widths, where attention multiplies more than a triangle.
    """
    parts = prefill_parts(work, mode, how, tokens=tokens, arithmetic=arithmetic, pairs=pairs)
    return _within(prompts * sum(parts.values()), how.prefill_band)


def prefill_parts(
    work: Work,
    mode: PowerMode,
    how: Coefficients,
    *,
    tokens: float,
    arithmetic: str,
    pairs: float | None = None,
) -> dict[str, float]:
    """The parts of one prompt's time, in milliseconds."""
    dense = peak_tflops(mode, arithmetic) * 1e9  # operations per millisecond
    wide = mode.dense_tflops["fp16"].value * 1e9 if "fp16" in mode.dense_tflops else dense
    linear = 2 * (work.linear_parameters * tokens + work.head_parameters)
    bandwidth = mode.attainable_gb_s * 1e6
    read = work.prompt_bytes(tokens)
    multiplied = work.attention_pairs(tokens) if pairs is None else pairs
    return {
        "matrices": linear / dense / how.compute,
        "attention": 4 * multiplied / wide / how.attention,
        "weights": read / bandwidth / how.bandwidth,
        "recurrence": _recurrence_ms(work, mode, how, tokens),
        "layers": work.layers * how.layer_us * how.prompt_layers / 1e3,
    }


def bottleneck(parts: dict[str, float]) -> str:
    """What takes most of a decoding step: reading, the overhead of layers, or further sequences."""
    times = {
        "memory bandwidth": parts["weights"] + parts["cache"],
        "per-layer overhead": parts["layers"],
        "the sequences of the batch": parts.get("batch", 0.0),
    }
    return max(times, key=lambda name: times[name])


def peak_tflops(mode: PowerMode, arithmetic: str) -> float:
    """The dense peak of an arithmetic type in a power mode."""
    if arithmetic != WEIGHT_ONLY:
        return mode.dense_tflops[arithmetic].value
    dense = mode.dense_tflops["fp16"].value
    if mode.clock_ghz is None or mode.sm_count is None:
        return dense
    return min(dense, _WARP_LEVEL * mode.sm_count.value * mode.clock_ghz.value / 1e3)


def joules_per_token(step: Estimate, mode: PowerMode, batch: int = 1) -> Estimate | None:
    """Energy per token of one of `batch` sequences, with a wide range; None without a power cap."""
    if mode.watts is None:
        return None
    low, middle, high = (mode.watts.value * share / 1e3 / batch for share in _SHARE_OF_CAP)
    return Estimate(step.value * middle, step.low * low, step.high * high)


def _within(value: float, band: tuple[float, float]) -> Estimate:
    return Estimate(value, value * band[0], value * band[1])


def _cycles(mode: PowerMode) -> float:
    """Clock cycles of all multiprocessors in a millisecond; 0 if unknown."""
    if mode.clock_ghz is None or mode.sm_count is None:
        return 0.0
    return mode.clock_ghz.value * mode.sm_count.value * 1e6


def _unpack_ms(weights: float, mode: PowerMode, how: Coefficients) -> float:
    cycles = _cycles(mode)
    return weights * how.unpack / cycles if cycles else 0.0


def _recurrence_ms(work: Work, mode: PowerMode, how: Coefficients, tokens: float) -> float:
    cycles = _cycles(mode)
    if not cycles:
        return 0.0
    return work.recurrent_layers * tokens * how.recurrent_us * 1e3 / cycles
