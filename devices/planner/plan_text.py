"""Tables of plans, as `edge-devices plan` prints them."""

from collections.abc import Sequence

from edgelm.cli import format_bytes
from edgelm.devices.planner.models.smaller_models import SmallerModel
from edgelm.planning import Plan, short

_HEAD = (
    f"{'precision':<10} {'cache':<6} {'weights':>9} {'total':>9}  {'tokens/s':<22} "
    f"{'first token':<11}  verdict"
)


def choice_table(plans: Sequence[Plan]) -> str:
    """One line for each plan, best first, and their notes below."""
    notes = dict.fromkeys(note for plan in plans for note in plan.notes)
    return "\n".join([_HEAD, *(_line(plan) for plan in plans), *(f"note: {one}" for one in notes)])


def smaller_models_table(models: Sequence[SmallerModel]) -> str:
    """Sizes of smaller models that meet the request, largest first."""
    if not models:
        return "No pruned version of this model would meet the request either."
    head = f"{'pruned':<19} {'layers':>6} {'hidden':>6} {'ffn':>6} {'parameters':>11}  runs as"
    lines = [
        f"{model.axis:<19} {model.num_hidden_layers:>6} {model.hidden_size:>6} "
        f"{model.intermediate_size:>6} {model.parameters / 1e6:>9,.0f} M  "
        f"{model.plan.precision}, {model.plan.kv} cache, "
        f"{short(model.plan.tokens_per_second.value)} tokens/s{_experts(model)}"
        for model in models
    ]
    return "\n".join(["", "Pruned versions that would meet the request:", head, *lines])


def _experts(model: SmallerModel) -> str:
    if model.num_experts is None:
        return ""
    return f", with {model.num_experts} experts of {model.moe_intermediate_size}"


def _line(plan: Plan) -> str:
    speed = plan.tokens_per_second
    rate = f"{short(speed.value)} ({short(speed.low)} to {short(speed.high)})"
    bound = f", bound by {plan.binds}" if plan.fits else ""
    return (
        f"{plan.precision:<10} {plan.kv:<6} {format_bytes(plan.weight_bytes):>9} "
        f"{format_bytes(plan.total_bytes):>9}  {rate:<22} {plan.prefill_ms.value:>8,.0f} ms  "
        f"{plan.verdict}{bound}"
    )
