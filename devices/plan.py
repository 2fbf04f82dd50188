"""The one planner: what a device will be given, what it costs, whether it fits.

Arithmetic on a DecoderSpec and a profile, no weights: decode moves every weight and the cache
through memory once per token; prefill is bound by arithmetic. (Roofline, Williams et al. 2009.)
"""

import msgspec

from edgelm.command import format_bytes
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import Plan, Request
from edgelm.precision import KV_BYTES, Fp32, Int4, Int8, KvType, parse_precision
from edgelm.spec import DecoderSpec

# `auto` ends between int4 and int8; on small models, where 4 bits hurt most, about here.
_AUTO_BITS = 6.5
_PREFILL = 512
_LEAST_CONTEXT = 2  # one token seen, one more to say


def plan(spec: DecoderSpec, profile: Profile, request: Request) -> Plan:
    """Choose precision, cache and context for a device and predict what they cost.

    Raises:
        UnknownName: a precision or cache type that the device does not have.
        BadInput: a context beyond the model's.
    """
    estimate = _estimate(spec, profile, request)
    if estimate.fits:
        return estimate
    return msgspec.structs.replace(estimate, advice=_advice(spec, profile, request, estimate))


def _estimate(spec: DecoderSpec, profile: Profile, request: Request) -> Plan:
    context = choose_context(spec, profile, request.context)
    bits, arithmetic = _weight_bits(profile, request)
    kv = choose_kv(profile, request)
    weights = spec.weight_bytes(bits)
    cache = spec.kv_bytes_per_token(KV_BYTES[kv]) * context
    workspace = workspace_bytes(spec, kv=kv, context=context, chunk=profile.prefill_chunk)
    # Every weight is read once per token, but of the input embedding only one row.
    embedding = 0 if spec.tie_word_embeddings else spec.embedding_parameters * bits / 8
    moved = weights - embedding
    efficiency = profile.efficiency
    read_ms = 1e3 * moved / (profile.bandwidth_gb_s * 1e9 * efficiency.bandwidth)
    overhead_ms = spec.num_hidden_layers * efficiency.layer_overhead_us / 1e3
    flops = 2 * spec.linear_parameters * _PREFILL
    seen = sum(min(_PREFILL, layer.window or _PREFILL) for layer in spec.layers)
    flops += 4 * spec.q_size * seen * _PREFILL
    prefill_ms = 1e3 * flops / (profile.dense_gflops[arithmetic] * 1e9 * efficiency.prefill)
    total = weights + cache + workspace + profile.runtime_bytes
    budget = profile.budget_bytes
    # Exporting holds the largest matrix a few times over in fp32, and the gate's rows of logits.
    largest = max(spec.embedding_parameters, spec.hidden_size * 2 * spec.intermediate_size)
    return Plan(
        target=profile.name,
        engine=profile.engine,
        dialect=profile.dialect,
        precision=request.precision,
        kv=kv,
        context=context,
        parameters=spec.parameters,
        weight_bytes=weights,
        kv_bytes=cache,
        workspace_bytes=workspace,
        runtime_bytes=profile.runtime_bytes,
        build_bytes=12 * largest + 3 * 4 * 256 * spec.vocab_size + total,
        budget_bytes=budget,
        prefill_512_ms=prefill_ms,
        decode_ms=read_ms + overhead_ms,
        binds="memory bandwidth" if read_ms > overhead_ms else "per-layer overhead",
        fits=total <= budget,
    )


def choose_context(spec: DecoderSpec, profile: Profile, asked: int | None) -> int:
    """The context asked for, or the device's default, never beyond the model's."""
    most = spec.max_position_embeddings
    if asked is None:
        # Beyond its original context a longrope model turns every key differently.
        originals = [
            int(layer.rope.scaling.get("original_max_position_embeddings") or most)
            for layer in spec.layers
            if layer.rope and layer.rope.scaling.get("rope_type") == "longrope"
        ]
        return min(most, profile.default_context, *originals)
    if asked < _LEAST_CONTEXT or asked > most:
        raise BadInput(
            f"context {asked} is not possible: expected {_LEAST_CONTEXT} to {most} "
            "(the model's max_position_embeddings)"
        )
    return asked


def choose_kv(profile: Profile, request: Request) -> KvType:
    """The cache type asked for; int8 by default, fp32 beside fp32 weights."""
    kv = request.kv or ("fp32" if request.precision == "fp32" else "int8")
    if kv not in profile.kv:
        raise UnknownName(f"{profile.name} has no {kv} cache; it has {', '.join(profile.kv)}")
    return kv


def _weight_bits(profile: Profile, request: Request) -> tuple[float, str]:
    if request.precision == "auto":
        return _AUTO_BITS, "int4"
    precision = parse_precision(
        request.precision, group_size=request.group_size, symmetric=request.symmetric
    )
    if request.precision not in profile.precisions:
        raise UnknownName(
            f"{profile.name} has no {request.precision}; it has auto, "
            f"{', '.join(profile.precisions)}"
        )
    names: dict[type, str] = {Fp32: "fp32", Int8: "int8", Int4: "int4"}
    return precision.bits_per_weight, names[type(precision)]


def workspace_bytes(spec: DecoderSpec, *, kv: KvType, context: int, chunk: int) -> int:
    """Activations of one prefill chunk at a full cache, the largest moment."""
    rows = min(chunk, context)
    widest = spec.q_size + 2 * spec.kv_size + 4 * spec.hidden_size + 3 * spec.intermediate_size
    scores = spec.num_attention_heads * context
    widened = 4 * context * spec.kv_size if kv == "int8" else 0
    return 4 * (rows * (widest + scores) + widened + spec.vocab_size)


def _advice(spec: DecoderSpec, profile: Profile, request: Request, asked: Plan) -> tuple[str, ...]:
    """What to change, least loss first: every line on its own makes the model fit."""
    excess = format_bytes(asked.total_bytes - asked.budget_bytes)
    smallest = msgspec.structs.replace(request, precision="int4", kv="int8")
    options: list[str] = []
    shorter = _longest_context(spec, profile, request, asked.context)
    if shorter:
        options.append(f"--context {shorter}")
    if request.precision != "int4":
        if _estimate(spec, profile, smallest).fits:
            options.append("--precision int4 --kv int8")
        elif not shorter:
            fewer = _longest_context(spec, profile, smallest, asked.context)
            options += [f"--precision int4 --kv int8 --context {fewer}"] if fewer else []
    return (f"{excess} too much", *(options or ["a smaller model"]))


def _longest_context(
    spec: DecoderSpec, profile: Profile, request: Request, most: int
) -> int | None:
    """The longest context in steps of 256 with which the request fits, if any does."""
    for context in range((most - 1) // 256 * 256, 0, -256):
        if _estimate(spec, profile, msgspec.structs.replace(request, context=context)).fits:
            return context
    return None
