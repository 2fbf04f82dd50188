"""A row as a sum of terms, each a fixed cost times one coefficient.

Decode and prefill times are sums over the same positive factors, so that each row informs the
others: `read` (how much longer than the peak allows reading takes), `unpack`, `layers`,
`prompt_layers`, `matrices`, `attention`, `recurrence`. Only the weights of a decoded token are no
sum: they are unpacked while they are read. The costs come from the cost model itself with every
coefficient at one.
"""

import msgspec

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published.rows import Row

TERMS = ("read", "unpack", "layers", "prompt_layers", "matrices", "attention", "recurrence")

_PEAK = Coefficients(
    bandwidth=1.0,
    cache_bandwidth=1.0,
    compute=1.0,
    attention=1.0,
    layer_us=1.0,
    recurrent_us=1.0,
)
_UNPACK = msgspec.structs.replace(_PEAK, bandwidth=float("inf"), unpack=1.0)


class Observation(msgspec.Struct, frozen=True):
    """One measured time and the costs of its terms, in milliseconds."""

    row: Row
    kind: str  # decode or prefill
    measured_ms: float
    costs: tuple[float, ...]  # in the order of the terms
    overlapped: float = 0.0  # the part of `read` during which weights are unpacked


def observations(rows: tuple[Row, ...]) -> list[Observation]:
    """Every time in the rows."""
    found = []
    for row in rows:
        if row.decode_ms is not None:
            found.append(_decode(row, row.decode_ms))
        if row.prefill_ms is not None:
            costs = _prefill_costs(row)
            found.append(
                Observation(row, "prefill", row.prefill_ms, tuple(costs[term] for term in TERMS))
            )
    return found


def _decode(row: Row, measured_ms: float) -> Observation:
    mode = row.hardware.mode
    parts = cost.decode_parts(row.work, mode, _PEAK, depth=row.depth)
    costs = dict.fromkeys(TERMS, 0.0)
    costs["read"] = parts["weights"] + parts["cache"]
    costs["unpack"] = cost.decode_parts(row.work, mode, _UNPACK, depth=row.depth)["weights"]
    costs["layers"] = parts["layers"]
    if row.includes_prompt:
        for term, value in _prefill_costs(row).items():
            costs[term] += value / row.output
    ordered = tuple(costs[term] for term in TERMS)
    return Observation(row, "decode", measured_ms, ordered, parts["weights"])


def _prefill_costs(row: Row) -> dict[str, float]:
    parts = cost.prefill_parts(
        row.work, row.hardware.mode, _PEAK, tokens=row.prompt, arithmetic=row.arithmetic
    )
    return {
        "read": parts["weights"],
        "unpack": 0.0,
        "layers": 0.0,
        "prompt_layers": parts["layers"],
        "matrices": parts["matrices"],
        "attention": parts["attention"],
        "recurrence": parts["recurrence"],
    }
