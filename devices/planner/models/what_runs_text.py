"""The table of `edge-devices models`."""

from collections.abc import Sequence

from edgelm.cli import format_bytes
from edgelm.devices.planner.models.what_runs import Candidate
from edgelm.planning import Plan, short

_HEAD = (
    f"{'class':<12} {'model':<25} {'precision':<9} {'context':>7}  {'tokens/s':<22} "
    f"{'first token':>11} {'memory':>9} {'to build':>9}"
)


def candidates_table(candidates: Sequence[Candidate]) -> str:
    """One line for each model that works, best class first; the others are named below."""
    working = [one for one in candidates if one.works]
    lines = [_HEAD, *(_line(one, one.plan) for one in working if one.plan)]
    if not working:
        lines = ["None of the known models runs there as requested."]
    reasons: dict[str, list[str]] = {}
    for one in candidates:
        if not one.works:
            reasons.setdefault(one.reason, []).append(one.name)
    lines += [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return "\n".join(lines)


def _line(candidate: Candidate, plan: Plan) -> str:
    speed = plan.tokens_per_second
    rate = f"{short(speed.value)} ({short(speed.low)} to {short(speed.high)})"
    build = format_bytes(plan.build_bytes) if plan.build_bytes else "-"
    if plan.build_segments > 1:
        build += f" in {plan.build_segments} segments"
    return (
        f"{candidate.quality_class:<12} {candidate.name:<25} {plan.precision:<9} "
        f"{plan.context:>7,}  {rate:<22} {plan.prefill_ms.value:>8,.0f} ms "
        f"{format_bytes(plan.total_bytes):>9} {build:>9}"
    ).rstrip()
