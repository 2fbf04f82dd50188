"""The nearest smaller shapes of a decoder that would do what is asked of a device.

When no precision fits, the model is too large: each way of pruning it is cut just as far as
needed, with sizes that kernels like. What the search in compress starts from.
"""

from collections.abc import Callable, Iterator

import msgspec

from edgelm.devices.planner.plan import choices
from edgelm.devices.profile import Profile
from edgelm.planning import Plan, PlanRequest
from edgelm.spec.decoder import DecoderSpec

_MULTIPLE = 128  # of widths: groups of quantized weights and tiles of matrix kernels
_MIN_LAYERS = 2


class Shape(msgspec.Struct, frozen=True):
    """A smaller decoder that works, and how the device would run it."""

    axis: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    parameters: int
    plan: Plan


def nearest_shapes(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> list[Shape]:
    """The largest shape along each axis (depth, feed-forward width, both) that works, if any."""
    found = []
    for axis, cut in _AXES.items():
        shape = _largest(axis, list(cut(spec)), profile, request)
        if shape is not None:
            found.append(shape)
    return sorted(found, key=lambda shape: -shape.parameters)


def _largest(
    axis: str, candidates: list[DecoderSpec], profile: Profile, request: PlanRequest
) -> Shape | None:
    """Bisect: `candidates` shrink, and a smaller one never costs more."""
    low, high = 0, len(candidates)
    best: Shape | None = None
    while low < high:
        middle = (low + high) // 2
        chosen = choices(candidates[middle], profile, request)[0]
        if chosen.works:
            best, high = _shape(axis, candidates[middle], chosen), middle
        else:
            low = middle + 1
    return best


def _shape(axis: str, spec: DecoderSpec, plan: Plan) -> Shape:
    return Shape(
        axis,
        spec.num_hidden_layers,
        spec.hidden_size,
        spec.intermediate_size,
        spec.parameters,
        plan,
    )


def _shallower(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    for layers in range(spec.num_hidden_layers - 1, _MIN_LAYERS - 1, -1):
        yield _with(spec, layers=layers)


def _narrower(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    multiple = _multiple(spec.intermediate_size)
    top = (spec.intermediate_size - 1) // multiple * multiple
    for ffn in range(top, 0, -multiple):
        yield _with(spec, ffn=ffn)


def _thinner(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    """Depth, hidden size and feed-forward width by the same share."""
    seen = set()
    for percent in range(99, 9, -1):
        layers = max(_MIN_LAYERS, round(spec.num_hidden_layers * percent / 100))
        hidden = _rounded(spec.hidden_size, percent)
        ffn = _rounded(spec.intermediate_size, percent)
        if (layers, hidden, ffn) not in seen:
            seen.add((layers, hidden, ffn))
            yield _with(spec, layers=layers, hidden=hidden, ffn=ffn)


_AXES: dict[str, Callable[[DecoderSpec], Iterator[DecoderSpec]]] = {
    "depth": _shallower,
    "feed-forward width": _narrower,
    "depth and width": _thinner,
}


def _multiple(size: int) -> int:
    return next(m for m in (_MULTIPLE, 32, 8, 1) if size >= 8 * m or m == 1)


def _rounded(size: int, percent: int) -> int:
    """A share of a width, on a multiple that suits it; never more than it was."""
    multiple = _multiple(size)
    return max(multiple, size * percent // 100 // multiple * multiple)


def _with(
    spec: DecoderSpec,
    *,
    layers: int | None = None,
    hidden: int | None = None,
    ffn: int | None = None,
) -> DecoderSpec:
    kept = spec.layers[: layers or len(spec.layers)]
    return msgspec.structs.replace(
        spec,
        num_hidden_layers=len(kept),
        layers=kept,
        hidden_size=hidden or spec.hidden_size,
        intermediate_size=ffn or spec.intermediate_size,
    )
