"""The planner: chooses precision, cache and context for a device, and predicts what they cost.

Arithmetic on a DecoderSpec and a profile, without weights; times come from the cost model.
"""

import math
from collections.abc import Iterable

import msgspec

from edgelm.cli import format_bytes
from edgelm.devices.kernels import cache_notes, check_shape, kernels_of
from edgelm.devices.planner import cost
from edgelm.devices.planner.coefficients import coefficients_for
from edgelm.devices.planner.device_notes import device_notes
from edgelm.devices.planner.memory_need import build_bytes, workspace_bytes
from edgelm.devices.planner.work import Work, work_of
from edgelm.devices.profile import Engine, PowerMode, Profile
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import Plan, PlanRequest, short
from edgelm.quantize.precision import (
    EIGHT_BIT_KV,
    KV_BYTES,
    Int4,
    Int8,
    KvType,
    WeightPrecision,
    stored_bytes,
)
from edgelm.spec.decoder import DecoderSpec

# `auto` ends between int4 and int8; about here on small models, which need more 8-bit matrices.
_AUTO_BITS = 6.5
_MASKED_CONTEXT = 4096
_MIN_CONTEXT = 2  # one token of a prompt and one that is generated
# Closest to the source model first.
_QUALITY = ("fp32", "bf16", "fp16", "int8", "w8a8", "fp8", "auto", "nvfp4", "int4")
_NARROW = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "fp16",
    "w8a8": "int8",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
}


def plan(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> Plan:
    """Choose precision, cache and context for a device, and predict memory, speed and energy.

    Raises:
        UnknownName: an engine, power mode, precision or cache type that the device does not have.
        BadInput: a context beyond the model's, a value out of range, or a decoder whose shape the
            engine's kernels do not support.
    """
    _check(request)
    estimate = _estimate(spec, profile, request)
    if estimate.works:
        return estimate
    return msgspec.structs.replace(
        estimate,
        missing=_missing(request, estimate),
        advice=_advice(spec, profile, request, estimate),
    )


def choices(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> list[Plan]:
    """A plan for every precision and cache type of the engine that the request allows.

    Plans that meet the request come first, the closest to the source model before faster ones;
    then those that are too slow, fastest first; then those that do not fit, smallest first.
    """
    _check(request)
    engine = profile.engine(request.engine)
    precisions = engine.precisions if request.precision == "auto" else (request.precision,)
    plans = [
        _estimate(spec, profile, msgspec.structs.replace(request, precision=precision, kv=kv))
        for precision in precisions
        for kv in _caches(spec, engine, precision, request.kv)
    ]
    return sorted(plans, key=_rank)


def _caches(
    spec: DecoderSpec, engine: Engine, precision: str, asked: KvType | None
) -> tuple[KvType, ...]:
    if asked is not None:
        return (asked,)
    # A quantized cache beside unquantized weights is never a default.
    if precision == "fp32" and "fp32" in engine.kv:
        return ("fp32",)
    whole = precision in ("fp32", "fp16", "bf16")
    other = _other_16_bits(spec, engine, precision)
    return tuple(kv for kv in engine.kv if kv != other and not (whole and kv in EIGHT_BIT_KV))


def _other_16_bits(spec: DecoderSpec, engine: Engine, precision: str) -> KvType | None:
    """The 16-bit cache that is no default where the engine has both: they cost the same."""
    if not {"fp16", "bf16"} <= set(engine.kv):
        return None
    return "fp16" if precision == "bf16" or spec.norm_plus_one else "bf16"


def _rank(plan: Plan) -> tuple[float, ...]:
    speed = -plan.tokens_per_second.value
    if plan.works:
        return 0, _QUALITY.index(plan.precision), -KV_BYTES[plan.kv], speed
    if plan.fits:
        return 1, speed
    return 2, plan.total_bytes


def _check(request: PlanRequest) -> None:
    if request.prompt < 1 or request.batch < 1:
        raise BadInput(
            f"prompt {request.prompt} and batch {request.batch}: expected whole numbers above zero"
        )
    rate = request.min_tokens_per_second
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise BadInput(f"{rate:g} tokens/s requested; expected a rate above zero")
    if request.max_memory_bytes is not None and request.max_memory_bytes <= 0:
        raise BadInput(
            f"a memory budget of {request.max_memory_bytes} bytes; expected a size above zero, "
            "e.g. 4GB"
        )


def _estimate(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> Plan:
    engine = profile.engine(request.engine)
    mode = profile.mode(request.power_mode)
    context = choose_context(spec, profile, request.context, engine.dialect)
    kv = choose_kv(spec, profile, engine, request)
    linear, head = _weight_bits(spec, profile, engine, request)
    check_shape(spec, engine.name)
    work = work_of(spec, linear_bits=linear, head_bits=head, kv_bytes=KV_BYTES[kv])
    prompt = min(request.prompt, context)
    how = coefficients_for(profile, engine.name, request.precision, kv)
    step = cost.decode_ms(work, mode, how, depth=prompt, batch=request.batch)
    first = cost.prefill_ms(
        work, mode, how, tokens=prompt, arithmetic=_arithmetic(mode, request.precision)
    )
    weights = _weight_bytes(spec, engine, linear, head)
    cache = spec.kv_bytes_per_token(KV_BYTES[kv]) * context * request.batch
    cache += spec.state_bytes(4) * request.batch
    workspace = workspace_bytes(
        spec, kv=kv, context=context, chunk=profile.prefill_chunk, engine=engine.name
    )
    runtime = int(engine.runtime_bytes.value)
    packed = int((engine.weight_copies - 1) * weights)
    total = weights + packed + cache + workspace + runtime
    budget = budget_bytes(profile, request)
    fits = total <= budget
    floor = request.min_tokens_per_second
    return Plan(
        target=profile.name,
        engine=engine.name,
        dialect=engine.dialect,
        power_mode=mode.name,
        precision=request.precision,
        kv=kv,
        context=context,
        prompt=prompt,
        batch=request.batch,
        parameters=spec.parameters,
        weight_bytes=weights,
        packed_bytes=packed,
        kv_bytes=cache,
        workspace_bytes=workspace,
        runtime_bytes=runtime,
        build_bytes=build_bytes(spec, engine, weights=weights, total=total),
        budget_bytes=budget,
        prefill_ms=first,
        decode_ms=step,
        joules_per_token=cost.joules_per_token(step, mode, request.batch),
        binds="memory" if not fits else _binds(work, mode, how, prompt, request.batch),
        fits=fits,
        fast_enough=floor is None or step.per_second(request.batch).value >= floor,
        basis=how.source,
        notes=(*cache_notes(spec, engine.name, kv), *device_notes(profile)),
    )


def budget_bytes(profile: Profile, request: PlanRequest) -> int:
    """Memory that may be used: what the device leaves free, or less if the request says so."""
    return min(profile.budget_bytes, request.max_memory_bytes or profile.budget_bytes)


def _binds(work: Work, mode: PowerMode, how: cost.Coefficients, depth: float, batch: int) -> str:
    parts = cost.decode_parts(work, mode, how, depth=depth, batch=batch)
    read = parts["weights"] + parts["cache"]
    return "memory bandwidth" if read > parts["layers"] else "per-layer overhead"


def choose_context(
    spec: DecoderSpec, profile: Profile, asked: int | None, dialect: str = "ort"
) -> int:
    """The requested context, or the device's default, at most the model's.

    TensorRT's graphs read the whole cache for every token, full or not: a long context costs time
    from the first token on, so their default is shorter.
    """
    limit = spec.max_position_embeddings
    default = profile.default_context
    if dialect != "ort":
        default = min(default, _MASKED_CONTEXT)
    if asked is None:
        # Beyond its original context a longrope model rotates every key differently.
        originals = [
            int(layer.rope.scaling.get("original_max_position_embeddings") or limit)
            for layer in spec.layers
            if layer.rope and layer.rope.scaling.get("rope_type") == "longrope"
        ]
        return min(limit, default, *originals)
    if asked < _MIN_CONTEXT or asked > limit:
        raise BadInput(
            f"context {asked} is not possible: expected {_MIN_CONTEXT} to {limit} "
            "(the model's max_position_embeddings)"
        )
    return asked


def choose_kv(spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest) -> KvType:
    """The requested cache type; by default the engine's first, on a CPU int8 (fp32 with fp32)."""
    if request.kv is None:
        wanted = engine.kv[0]
        if engine.name == "onnxruntime":
            wanted = "fp32" if request.precision == "fp32" else "int8"
        # Gemma's residual stream exceeds the range of fp16, and a 16-bit cache has its type.
        if request.precision == "bf16" or (spec.exceeds_fp16 and wanted == "fp16"):
            wanted = "bf16"
        return wanted if wanted in engine.kv else engine.kv[0]
    if request.kv not in engine.kv:
        others = [one.name for one in profile.engines if request.kv in one.kv]
        raise UnknownName(
            f"{profile.name} has no {request.kv} cache with {engine.name}; it has "
            f"{', '.join(engine.kv)}"
            + (f" ({request.kv} with --engine {others[0]})" if others else "")
        )
    return request.kv


def _weight_bits(
    spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest
) -> tuple[float, float]:
    """Bits per weight of the layers and of the head, which TensorRT stores in at least eight."""
    fewest = 0.0 if engine.dialect == "ort" else 8.0
    if request.precision == "auto":
        return _AUTO_BITS, max(_AUTO_BITS, fewest)
    if request.precision not in engine.precisions:
        raise UnknownName(
            f"{profile.name} has no {request.precision} with {engine.name}; it has auto, "
            f"{', '.join(engine.precisions)}"
        )
    kernels = kernels_of(engine.name)

    def precision(columns: int) -> WeightPrecision:
        return kernels.precision(
            request.precision, columns, group_size=request.group_size, symmetric=request.symmetric
        )

    head = precision(spec.hidden_size)
    if not (kernels.pads and isinstance(head, Int4 | Int8)):
        return head.bits_per_weight, max(head.bits_per_weight, fewest)
    head = kernels.for_table(head, spec.hidden_size)
    linear = sum(
        _row_bits(precision(inputs), inputs) * outputs for outputs, inputs in spec.linear_shapes
    )
    return (
        linear / spec.linear_parameters,
        _row_bits(head, spec.hidden_size) / spec.hidden_size,
    )


def _row_bits(precision: WeightPrecision, columns: int) -> int:
    """Bits of a row in groups, padding of its last block included."""
    assert isinstance(precision, Int4 | Int8)
    return 8 * stored_bytes(1, columns, precision)


def _weight_bytes(spec: DecoderSpec, engine: Engine, linear: float, head: float) -> int:
    if engine.dialect == "ort" or (spec.tie_word_embeddings and linear >= 16):
        return spec.weight_bytes(linear, head)
    # The embedding keeps 16 bits, beside a quantized head even where the two are tied.
    tables = spec.embedding_parameters * (16 + head) / 8
    return spec.weight_bytes(linear, 0) + int(tables)


def _arithmetic(mode: PowerMode, precision: str) -> str:
    """The type of matrix products: the precision itself if the mode has a peak for it."""
    wanted = _NARROW.get(precision, precision)
    if wanted == "auto":
        wanted = "int4"
    if wanted in mode.dense_tflops and (wanted in _NARROW or "fp16" not in mode.dense_tflops):
        return wanted
    return cost.WEIGHT_ONLY if "fp16" in mode.dense_tflops else next(iter(mode.dense_tflops))


def _missing(request: PlanRequest, asked: Plan) -> tuple[str, ...]:
    found = []
    if not asked.fits:
        found.append(f"{format_bytes(asked.total_bytes - asked.budget_bytes)} of memory")
    if not asked.fast_enough:
        found.append(
            f"speed: {short(asked.tokens_per_second.value)} tokens/s predicted, "
            f"{short(request.min_tokens_per_second or 0)} required"
        )
    return tuple(found)


def _advice(
    spec: DecoderSpec, profile: Profile, request: PlanRequest, asked: Plan
) -> tuple[str, ...]:
    """Changes that meet the request, each by itself, the least loss of quality first."""
    options = []
    shorter = None
    if asked.fast_enough:
        shorter = _longest_context(spec, profile, request, asked.context)
        options += [f"--context {shorter}"] if shorter else []
    options += _other_precisions(spec, profile, request, asked, shorter)
    return tuple(options or ["a smaller model"])


def _other_precisions(
    spec: DecoderSpec, profile: Profile, request: PlanRequest, asked: Plan, shorter: int | None
) -> Iterable[str]:
    """The plan closest to the source that meets the request, else the smallest, shortened."""
    anything = msgspec.structs.replace(request, precision="auto", kv=None)
    ranked = [one for one in choices(spec, profile, anything) if not _same(one, asked)]
    for choice in ranked:
        if choice.works:
            return [f"--precision {choice.precision} --kv {choice.kv}"]
    if shorter or not asked.fast_enough or not ranked:
        return []
    smallest = min(ranked, key=lambda one: one.total_bytes)
    narrow = msgspec.structs.replace(request, precision=smallest.precision, kv=smallest.kv)
    fewer = _longest_context(spec, profile, narrow, asked.context)
    return (
        [f"--precision {smallest.precision} --kv {smallest.kv} --context {fewer}"] if fewer else []
    )


def _same(one: Plan, other: Plan) -> bool:
    return (one.precision, one.kv) == (other.precision, other.kv)


def _longest_context(
    spec: DecoderSpec, profile: Profile, request: PlanRequest, limit: int
) -> int | None:
    """The longest context, in steps of 256, with which the request fits; None if none does."""
    steps = (limit - 1) // 256
    low, high = 0, steps
    while low < high:  # memory grows with the context, so bisect
        middle = (low + high + 1) // 2
        trial = msgspec.structs.replace(request, context=middle * 256)
        low, high = (middle, high) if _estimate(spec, profile, trial).fits else (low, middle - 1)
    return low * 256 or None
