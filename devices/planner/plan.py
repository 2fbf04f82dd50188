"""The planner: chooses precision, cache and context for a device, and predicts what they cost.

Arithmetic on a DecoderSpec and a profile, without weights; times come from the cost model.
"""

import math

import msgspec

from edgelm.devices.planner.advice import advice, missing
from edgelm.devices.planner.configuration import listed_caches
from edgelm.devices.planner.estimate import estimate
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.planning import Plan, PlanRequest
from edgelm.quantize.precision import KV_BYTES
from edgelm.spec.decoder import DecoderSpec

# Closest to the source model first.
QUALITY = ("fp32", "bf16", "fp16", "source", "int8", "w8a8", "fp8", "auto", "nvfp4", "int4")


def plan(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> Plan:
    """Choose precision, cache and context for a device, and predict memory, speed and energy.

    If nothing fits, the plan has advice: what to change so that it would.

    Args:
        spec: the model, e.g. `edgelm.checkpoint.source.read_spec(name)`.
        profile: the device, e.g. `edgelm.devices.profile.load_profile("jetson-orin-nano")`.
        request: what the deployment should be; None in a field leaves the choice to the plan.

    Raises:
        UnknownName: an engine, power mode, precision or cache type that the device does not have.
        BadInput: a context beyond the model's, a value out of range, or a decoder whose shape the
            engine's kernels do not support.
    """
    asked = predict(spec, profile, request)
    if asked.works:
        return asked
    return msgspec.structs.replace(asked, advice=advice(spec, profile, request, asked, choices))


def predict(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> Plan:
    """The plan without advice, which takes a hundred times as long: for searches.

    Raises:
        UnknownName, BadInput: as `plan`.
    """
    check_request(request)
    asked = estimate(spec, profile, request)
    if asked.works:
        return asked
    return msgspec.structs.replace(asked, missing=missing(request, asked))


def choices(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> list[Plan]:
    """A plan for every precision of the engine, and every size of cache, that the request allows.

    Plans that meet the request come first, the closest to the source model before faster ones;
    then those that are too slow, fastest first; then those that run but cannot be compiled on the
    device, and those that do not fit, smallest first.
    """
    check_request(request)
    engine = profile.engine(request.engine)
    precisions = engine.precisions if request.precision == "auto" else (request.precision,)
    plans = []
    for precision in precisions:
        own = msgspec.structs.replace(request, precision=precision)
        for kv in listed_caches(spec, profile, engine, own):
            plans.append(estimate(spec, profile, msgspec.structs.replace(own, kv=kv)))
    return sorted(plans, key=_rank)


def _rank(plan: Plan) -> tuple[float, ...]:
    speed = -plan.tokens_per_second.value
    if plan.works:
        return 0, QUALITY.index(plan.precision), -KV_BYTES[plan.kv], speed
    if plan.fits and plan.builds:
        return 1, speed
    if plan.fits:
        return 2, plan.build_bytes, speed
    return 3, plan.total_bytes


def check_request(request: PlanRequest) -> None:
    """Raise BadInput for a request that no model on any device could meet."""
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
