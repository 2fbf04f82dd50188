"""Plans side by side, for people."""

from collections.abc import Sequence

from edgelm.cli import format_bytes
from edgelm.devices.planner.shapes import Shape
from edgelm.planning import Plan, short

_HEAD = (
    f"{'precision':<10} {'cache':<6} {'weights':>9} {'total':>9}  {'tokens/s':<22} "
    f"{'first token':<11}  works"
)


def choice_table(plans: Sequence[Plan]) -> str:
    """One line a choice, best first; what is to say of some of them below."""
    notes = dict.fromkeys(note for plan in plans for note in plan.notes)
    return "\n".join([_HEAD, *(_line(plan) for plan in plans), *(f"note: {one}" for one in notes)])


def shape_table(shapes: Sequence[Shape]) -> str:
    """The nearest shapes that work, largest first."""
    if not shapes:
        return "No smaller shape of this model works either."
    head = (
        f"{'pruned in':<19} {'layers':>6} {'hidden':>6} {'ffn':>6} {'parameters':>11}  would run as"
    )
    lines = [
        f"{shape.axis:<19} {shape.num_hidden_layers:>6} {shape.hidden_size:>6} "
        f"{shape.intermediate_size:>6} {shape.parameters / 1e6:>9,.0f} M  "
        f"{shape.plan.precision}, {shape.plan.kv} cache, "
        f"{short(shape.plan.tokens_per_second.value)} tokens/s"
        for shape in shapes
    ]
    return "\n".join(["", "Smaller shapes that would work:", head, *lines])


def _line(plan: Plan) -> str:
    speed = plan.tokens_per_second
    rate = f"{short(speed.value)} ({short(speed.low)} to {short(speed.high)})"
    if plan.works:
        answer = f"yes, bound by {plan.binds}"
    else:
        answer = "no: " + ("too slow" if plan.fits else "memory")
    return (
        f"{plan.precision:<10} {plan.kv:<6} {format_bytes(plan.weight_bytes):>9} "
        f"{format_bytes(plan.total_bytes):>9}  {rate:<22} {plan.prefill_ms.value:>8,.0f} ms  "
        f"{answer}"
    )
