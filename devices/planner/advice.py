"""What a plan that does not work lacks, and which changes are enough."""

from collections.abc import Callable, Iterable

import msgspec

from edgelm.cli import format_bytes
from edgelm.devices.planner.estimate import estimate
from edgelm.devices.profile import Profile
from edgelm.planning import Plan, PlanRequest, range_text, short
from edgelm.spec.decoder import DecoderSpec

Choices = Callable[[DecoderSpec, Profile, PlanRequest], list[Plan]]


def missing(request: PlanRequest, asked: Plan) -> tuple[str, ...]:
    """What the request lacks, one line each."""
    found = []
    if asked.unsupported:
        found.append(f"an engine that edgelm runs on: {asked.unsupported}")
    if not asked.fits:
        found.append(f"{format_bytes(asked.total_bytes - asked.budget_bytes)} of memory")
    if not asked.builds:
        found.append(
            f"{format_bytes(asked.build_bytes - asked.build_room_bytes)} of memory to compile the "
            "engine on the device (swap on a disk makes it possible, slowly)"
        )
    if not asked.fast_enough:
        found.append(
            f"speed: {range_text(asked.tokens_per_second)} tokens/s predicted, "
            f"{short(request.min_tokens_per_second or 0)} required"
        )
    return tuple(found)


def advice(
    spec: DecoderSpec, profile: Profile, request: PlanRequest, asked: Plan, choices: Choices
) -> tuple[str, ...]:
    """Changes that meet the request, each by itself, the least loss of quality first."""
    if asked.unsupported:
        return ("another device",)
    options = []
    shorter = None
    if asked.builds:
        shorter = _longest_context(spec, profile, request, asked.context)
        options += [f"--context {shorter}"] if shorter else []
    options += _other_precisions(spec, profile, request, asked, shorter, choices)
    return tuple(options or ["a smaller model"])


def _other_precisions(
    spec: DecoderSpec,
    profile: Profile,
    request: PlanRequest,
    asked: Plan,
    shorter: int | None,
    choices: Choices,
) -> Iterable[str]:
    """The plan closest to the source that meets the request, else the smallest, shortened."""
    anything = msgspec.structs.replace(request, precision="auto", kv=None, source=None)
    ranked = [one for one in choices(spec, profile, anything) if not _same(one, asked)]
    for choice in ranked:
        if choice.works:
            return [f"--precision {choice.precision} --kv {choice.kv}"]
    if shorter or not ranked:
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
    """The longest context, in steps of 256, with which the request works; None if none does."""
    steps = (limit - 1) // 256
    low, high = 0, steps
    while low < high:  # memory and time grow with the context, so bisect
        middle = (low + high + 1) // 2
        trial = msgspec.structs.replace(request, context=middle * 256)
        works = estimate(spec, profile, trial).works
        low, high = (middle, high) if works else (low, middle - 1)
    return low * 256 or None
