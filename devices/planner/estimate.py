"""The plan of one configuration: a precision, a cache type and a context on a device."""

import msgspec

from edgelm.devices.attention_kernels import cache_notes, check_context
from edgelm.devices.kernels import check_shape
from edgelm.devices.planner.configuration import choose_context, choose_kv
from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cache_reads import READS
from edgelm.devices.planner.cost_model.coefficients import coefficients_for
from edgelm.devices.planner.cost_model.work import Work, work_of
from edgelm.devices.planner.device_notes import device_notes, unsupported
from edgelm.devices.planner.memory.build_room import Build, plan_build, room_of
from edgelm.devices.planner.memory.memory_need import (
    export_bytes,
    host_bytes,
    packed_bytes,
    sequence_state_bytes,
    workspace_bytes,
)
from edgelm.devices.planner.memory.packed_weights import (
    packs,
    planned_packing_bytes,
    session_bytes,
)
from edgelm.devices.planner.memory.weight_sizes import WeightSizes, weight_sizes
from edgelm.devices.planner.memory.window_rows import cache_bytes, cuts_windows, window_rows
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine, PowerMode
from edgelm.errors import BadInput
from edgelm.planning import Estimate, Plan, PlanRequest
from edgelm.quantize.precision import KV_BYTES, KvType
from edgelm.spec.assistant import read_layers
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.draft_head import HEAD_CACHE, draft_head_spec

_PUBLISHED_BATCH = 8  # every published row of several sequences has this many
_NARROW = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "fp16",
    "w8a8": "int8",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
}


class _Sizes(msgspec.Struct, frozen=True):
    """Bytes of everything that is in memory while the decoder runs."""

    packed: int
    cache: int
    workspace: int
    runtime: int


class _Times(msgspec.Struct, frozen=True):
    """Times of a step and of all prompts, and where they come from."""

    step: Estimate
    prompt: Estimate
    joules: Estimate | None
    binds: str
    basis: str


def estimate(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> Plan:
    """Predict memory, speed and energy of one configuration.

    Raises:
        UnknownName: an engine, power mode, precision or cache type that the device does not have.
        BadInput: a context that is not possible, or a shape without kernels.
    """
    engine = profile.engine(request.engine)
    mode = profile.mode(request.power_mode)
    context = choose_context(spec, profile, request.context, engine.dialect)
    kv = choose_kv(spec, profile, engine, request)
    weights = weight_sizes(spec, profile, engine, request)
    check_shape(spec, engine.name)
    check_context(spec, engine.name, context)
    prompt = min(request.prompt, context)
    how = coefficients_for(profile, engine.name, request.kind, kv)
    work = work_of(
        spec,
        linear_bits=weights.linear_bits,
        head_bits=weights.head_bits,
        kv_bytes=KV_BYTES[kv],
        windows=READS[engine.dialect].windows,
    )
    times = _times(work, mode, how, engine, request, context=context, prompt=prompt)
    sizes = _sizes(spec, profile, engine, weights, kv, request, context)
    total = weights.total_bytes + sizes.packed + sizes.cache + sizes.workspace + sizes.runtime
    draft = _draft_bytes(spec, profile, request, context, sizes.workspace)
    total += draft
    room = room_of(profile)
    build = plan_build(engine.name, weights.parts, weights.total_bytes, room)
    exported = export_bytes(spec, total)
    budget = budget_bytes(profile, request)
    floor = request.min_tokens_per_second
    rate = times.step.per_second(request.batch)
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
        weight_bytes=weights.total_bytes,
        packed_bytes=sizes.packed,
        kv_bytes=sizes.cache,
        workspace_bytes=sizes.workspace,
        runtime_bytes=sizes.runtime,
        export_bytes=exported,
        build_bytes=build.peak_bytes if build else 0,
        build_segments=build.segments if build else 1,
        build_room_bytes=room.available_bytes if build else 0,
        budget_bytes=budget,
        prefill_ms=times.prompt,
        decode_ms=times.step,
        joules_per_token=times.joules,
        binds=times.binds,
        fits=total <= budget,
        fast_enough=floor is None or rate.value >= floor,
        required_tokens_per_second=floor,
        unsupported=unsupported(profile),
        embeds=not spec.has_head,
        draft_bytes=draft,
        basis=times.basis,
        notes=(
            *(request.source.notes if request.source else ()),
            *_notes(spec, profile, engine, kv, build, request.batch),
        ),
    )


def head_plan(head: DecoderSpec, profile: Profile, request: PlanRequest, context: int) -> Plan:
    """The plan of a draft head with the context of its model; runtime memory is its model's.

    Raises:
        BadInput: another engine than ONNX Runtime on a CPU.
    """
    engine = profile.engine(request.engine)
    _check_engine(engine, "draft heads", "the draft head (leave out --draft-head or --draft)")
    own = msgspec.structs.replace(request, draft_head=False, kv=HEAD_CACHE, context=context)
    return estimate(head, profile, own)


def assistant_plan(
    assistant: DecoderSpec, profile: Profile, request: PlanRequest, context: int
) -> Plan:
    """The same of an assistant, which reads its model's cache, of the model's type.

    Raises:
        BadInput: as `head_plan`.
    """
    engine = profile.engine(request.engine)
    _check_engine(engine, "assistants", "the assistant (leave out --assistant or --draft)")
    limit = assistant.max_position_embeddings
    if context > limit:
        raise BadInput(
            f"the assistant has a context of {limit} tokens, fewer than the {context} of the plan; "
            f"give --context {limit}"
        )
    unquantized = request.kind in ("fp32", "fp16", "bf16")
    own = msgspec.structs.replace(
        request,
        assistant=None,
        source=None,
        precision=request.kind if unquantized else "int8",
        group_size=None,
        symmetric=None,
        context=context,
    )
    return estimate(assistant, profile, own)


def _check_engine(engine: Engine, what: str, option: str) -> None:
    if engine.name != "onnxruntime":
        raise BadInput(
            f"{what} run on ONNX Runtime's CPU, not on {engine.name}: plan and export without "
            f"{option}; prompt lookup needs no draft"
        )


def _draft_bytes(
    spec: DecoderSpec, profile: Profile, request: PlanRequest, context: int, workspace: int
) -> int:
    """What a draft head or assistant adds to memory; it shares its model's workspace."""
    if request.assistant is not None:
        drafting = assistant_plan(request.assistant, profile, request, context)
        return added_bytes(request.assistant, drafting, workspace)
    if not request.draft_head:
        return 0
    head = draft_head_spec(spec)
    return added_bytes(head, head_plan(head, profile, request, context), workspace)


def added_bytes(draft: DecoderSpec, plan: Plan, workspace: int) -> int:
    """What a draft adds to the memory of its model.

    Both have one tokenizer, and they run one after the other.

    Args:
        draft: a draft model, draft head or assistant.
        plan: its plan.
        workspace: what its model has, in bytes.
    """
    session = session_bytes(draft) if packs(plan.engine) else 0
    more = max(0, plan.workspace_bytes - workspace)
    return plan.weight_bytes + plan.packed_bytes + plan.kv_bytes + session + more


def budget_bytes(profile: Profile, request: PlanRequest) -> int:
    """Memory that may be used: what the device leaves free, or less if the request says so."""
    return min(profile.budget_bytes, request.max_memory_bytes or profile.budget_bytes)


def _times(
    work: Work,
    mode: PowerMode,
    how: cost.Coefficients,
    engine: Engine,
    request: PlanRequest,
    *,
    context: int,
    prompt: int,
) -> _Times:
    reads, batch = READS[engine.dialect], request.batch
    depth = reads.depth(prompt, context)
    arithmetic = _arithmetic(mode, request.kind)
    step = cost.decode_ms(work, mode, how, depth=depth, batch=batch, arithmetic=arithmetic)
    first = cost.prefill_ms(
        work,
        mode,
        how,
        tokens=prompt,
        arithmetic=arithmetic,
        pairs=reads.pairs(work, prompt, context),
        prompts=batch,
    )
    parts = cost.decode_parts(work, mode, how, depth=depth, batch=batch, arithmetic=arithmetic)
    return _Times(
        step, first, cost.joules_per_token(step, mode, batch), cost.bottleneck(parts), how.source
    )


def _sizes(
    spec: DecoderSpec,
    profile: Profile,
    engine: Engine,
    weights: WeightSizes,
    kv: KvType,
    request: PlanRequest,
    context: int,
) -> _Sizes:
    batch = request.batch
    lent = read_layers(request.assistant)
    cut = window_rows(spec, context, lent) if cuts_windows(engine.name, kv) else {}
    cache = cache_bytes(spec, kv, context, cut) + sequence_state_bytes(spec, engine.name)
    chunk = 1 if spec.assistant else profile.prefill_chunk
    workspace = workspace_bytes(spec, kv=kv, context=context, chunk=chunk, engine=engine.name)
    runtime = int(engine.runtime_bytes.value) + host_bytes(spec, engine.name)
    if not packs(engine.name):
        packed = packed_bytes(engine, weights.total_bytes)
        return _Sizes(packed, cache * batch, workspace, runtime)
    packed = planned_packing_bytes(
        spec,
        request,
        engine.name,
        linear_bits=weights.linear_bits,
        head_bits=weights.head_bits,
    )
    # While weights are loaded, the head may be mapped beside its packed copy.
    looked_up = spec.draft_head or spec.looks_up_head
    table = 0 if looked_up else spec.embedding_parameters
    head = int(table * weights.head_bits / 8)
    workspace = max(workspace, head - cache * batch)
    return _Sizes(packed, cache * batch, workspace, runtime + session_bytes(spec))


def _arithmetic(mode: PowerMode, precision: str) -> str:
    """The type of matrix products: the precision itself if the mode has a peak for it."""
    wanted = _NARROW.get(precision, precision)
    if wanted == "auto":
        wanted = "int4"
    if wanted in mode.dense_tflops and (wanted in _NARROW or "fp16" not in mode.dense_tflops):
        return wanted
    return cost.WEIGHT_ONLY if "fp16" in mode.dense_tflops else next(iter(mode.dense_tflops))


def _notes(
    spec: DecoderSpec,
    profile: Profile,
    engine: Engine,
    kv: KvType,
    build: Build | None,
    batch: int,
) -> tuple[str, ...]:
    notes = list(cache_notes(spec, engine.name, kv))
    if not spec.has_head:
        notes.append("an embedding model decodes nothing, and keeps no cache between texts")
    if batch not in (1, _PUBLISHED_BATCH):
        notes.append(
            f"speeds of several sequences follow from published rows of {_PUBLISHED_BATCH}; for "
            f"{batch} they are an extrapolation"
        )
    fits = build and build.peak_bytes <= room_of(profile).available_bytes
    if build and fits and build.segments > 1 and not unsupported(profile):
        notes.append(
            f"compiled whole, it would not fit: export it with --segments {build.segments}, or "
            "--segments auto"
        )
    return (*notes, *device_notes(profile))
