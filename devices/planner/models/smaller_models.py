"""Smaller models that would meet a request, as a hint when no precision does.

One model for each way of pruning: only depth, only feed-forward width, or everything by the same
share; of mixtures only depth, the number of experts, or their width. Each is reduced just as far as
the request needs, to widths that kernels run well. It costs some fifty plans. The search that
prunes a model tries a full grid: edgelm.compress.search.
"""

from collections.abc import Callable, Iterator

import msgspec

from edgelm.devices.planner.plan import choices
from edgelm.devices.profile import Profile
from edgelm.planning import Plan, PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth
from edgelm.spec.prunable import (
    following_mamba_heads,
    lasting_layers,
    mamba_of,
    mixture_of,
    with_experts,
    with_intermediate_size,
    with_mamba_heads,
)

_MULTIPLE = 128  # of widths: group sizes of quantized weights and tile sizes of kernels
_MIN_LAYERS = 2


class SmallerModel(msgspec.Struct, frozen=True):
    """Sizes of a decoder that meets the request, and its plan; `axis` names what is pruned."""

    axis: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    parameters: int
    plan: Plan
    num_experts: int | None = None
    moe_intermediate_size: int | None = None


def smaller_models(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> list[SmallerModel]:
    """The largest model along each axis that meets the request, largest first; empty if none."""
    found: list[SmallerModel] = []
    if spec.has_own_sizes:
        return found  # edge-compress does not prune students of [puzzle]
    for axis, candidates in (_MIXTURE_AXES if spec.mixtures else _AXES).items():
        model = _largest(axis, list(candidates(spec)), profile, request)
        if model is not None:
            found.append(model)
    return sorted(found, key=lambda model: -model.parameters)


def _largest(
    axis: str, candidates: list[DecoderSpec], profile: Profile, request: PlanRequest
) -> SmallerModel | None:
    """Bisect: `candidates` shrink, and a smaller one never costs more."""
    low, high = 0, len(candidates)
    best: SmallerModel | None = None
    while low < high:
        middle = (low + high) // 2
        chosen = choices(candidates[middle], profile, request)[0]
        if chosen.works:
            best, high = _record(axis, candidates[middle], chosen), middle
        else:
            low = middle + 1
    return best


def _record(axis: str, spec: DecoderSpec, plan: Plan) -> SmallerModel:
    mixture = mixture_of(spec)
    return SmallerModel(
        axis,
        spec.num_hidden_layers,
        spec.hidden_size,
        spec.intermediate_size,
        spec.parameters,
        plan,
        mixture.experts if mixture else None,
        mixture.size if mixture else None,
    )


def _shallower(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    for layers in range(spec.num_hidden_layers - 1, _min_layers(spec) - 1, -1):
        yield _with(spec, layers=layers)


def _narrower(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    multiple = _multiple(spec.intermediate_size)
    top = (spec.intermediate_size - 1) // multiple * multiple
    for ffn in range(top, 0, -multiple):
        yield _with(spec, ffn=ffn)


def _thinner(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    """Depth, hidden size and feed-forward width reduced by the same share."""
    seen = set()
    for percent in range(99, 9, -1):
        layers = max(_min_layers(spec), round(spec.num_hidden_layers * percent / 100))
        hidden = _fitting_hidden(spec, _scaled(spec.hidden_size, percent))
        ffn = _scaled(spec.intermediate_size, percent)
        if (layers, hidden, ffn) not in seen:
            seen.add((layers, hidden, ffn))
            yield _with(spec, layers=layers, hidden=hidden, ffn=ffn)


def _fewer_experts(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    mixture = spec.mixtures[0]
    for experts in range(mixture.experts - 1, 0, -1):
        yield with_experts(spec, experts, mixture.size, mixture.shared)


def _narrower_experts(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    mixture = spec.mixtures[0]
    multiple = _multiple(mixture.size)
    for size in range((mixture.size - 1) // multiple * multiple, 0, -multiple):
        yield with_experts(spec, mixture.experts, size, mixture.shared)


_AXES: dict[str, Callable[[DecoderSpec], Iterator[DecoderSpec]]] = {
    "depth": _shallower,
    "feed-forward width": _narrower,
    "depth and width": _thinner,
}
_MIXTURE_AXES: dict[str, Callable[[DecoderSpec], Iterator[DecoderSpec]]] = {
    "depth": _shallower,
    "number of experts": _fewer_experts,
    "width of experts": _narrower_experts,
}


def _min_layers(spec: DecoderSpec) -> int:
    return max(_MIN_LAYERS, len(lasting_layers(spec)))


def _multiple(size: int) -> int:
    return next(m for m in (_MULTIPLE, 32, 8, 1) if size >= 8 * m or m == 1)


def _scaled(size: int, percent: int) -> int:
    """A share of a width, rounded down to a multiple that kernels run well."""
    multiple = _multiple(size)
    return max(multiple, size * percent // 100 // multiple * multiple)


def _fitting_hidden(spec: DecoderSpec, hidden: int) -> int:
    """The widest hidden size up to this one that the heads of Mamba-2 layers can follow.

    Below all of them it is the narrowest one.
    """
    if mamba_of(spec) is None:
        return hidden
    multiple = _multiple(spec.hidden_size)
    sizes = range(multiple, spec.hidden_size + 1, multiple)
    fitting = [size for size in sizes if following_mamba_heads(spec, size)] or [spec.hidden_size]
    return max((size for size in fitting if size <= hidden), default=fitting[0])


def _with(
    spec: DecoderSpec,
    *,
    layers: int | None = None,
    hidden: int | None = None,
    ffn: int | None = None,
) -> DecoderSpec:
    resized = with_intermediate_size(spec, ffn or spec.intermediate_size)
    resized = with_depth(resized, layers or len(spec.layers))
    if hidden and (heads := following_mamba_heads(spec, hidden)) is not None:
        resized = with_mamba_heads(resized, heads)
    return msgspec.structs.replace(resized, hidden_size=hidden or spec.hidden_size)
