"""Enumerate shapes, keep the largest within the budget, choose finalists."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from edgelm.compress.pruning.shape import Shape
from edgelm.compress.search.candidates import Candidate, CostModel
from edgelm.compress.search.settings import SearchSettings
from edgelm.errors import DoesNotFit
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import fixed_sizes, following_mamba_heads, lasting_layers

_EXPERT_RATIOS = (0.75, 0.5)


def enumerate_shapes(spec: DecoderSpec, multiple: int, min_ratio: float) -> Iterator[Shape]:
    """All shapes on a grid of sizes that kernels accept, and transformers loads.

    Sizes go from `min_ratio` of the model's to the model's own. Each width has at most 16 steps,
    on multiples of 64 or of what the engine needs if that is more. Mixtures have three quarters or
    half as many experts, or experts of that size; more choices would take minutes to plan. Heads of
    Mamba-2 layers stay, unless they have to follow the hidden size.
    """
    full, fixed = Shape.from_spec(spec), fixed_sizes(spec)
    groups = full.num_key_value_heads
    hidden_sizes = _widths(full.hidden_size, multiple, min_ratio)
    ffn_sizes = [full.intermediate_size]
    if "intermediate_size" not in fixed:
        ffn_sizes = _widths(full.intermediate_size, multiple, min_ratio)
    least = max(1, round(full.num_hidden_layers * min_ratio), len(lasting_layers(spec)))
    for layers in range(full.num_hidden_layers, least - 1, -1):
        for hidden in hidden_sizes:
            mamba = following_mamba_heads(spec, hidden)
            if mamba is None and full.mamba_num_heads is not None:
                continue
            for ffn in ffn_sizes:
                for per_group in range(full.heads_per_group, 0, -1):
                    heads = per_group * groups
                    small = heads < min_ratio * full.num_attention_heads
                    if small or heads * spec.head_dim % multiple:
                        continue
                    shape = Shape(layers, hidden, ffn, heads, groups, mamba_num_heads=mamba)
                    if not shape.fits_heads(spec) or not shape.fits_groups(spec):
                        continue
                    for experts, size in _experts(full, multiple, min_ratio):
                        yield msgspec.structs.replace(
                            shape, num_experts=experts, moe_intermediate_size=size
                        )


def _experts(
    full: Shape, multiple: int, min_ratio: float
) -> Iterator[tuple[int | None, int | None]]:
    """Numbers of experts with their sizes; fewer ones or smaller ones, never both."""
    experts, size = full.num_experts, full.moe_intermediate_size
    yield experts, size
    if experts is None or size is None:
        return
    for ratio in _EXPERT_RATIOS:
        if ratio < min_ratio:
            continue
        if 1 <= (fewer := int(experts * ratio)) < experts:
            yield fewer, size
        if 1 <= (smaller := int(size * ratio) // multiple * multiple) < size:
            yield experts, smaller


def _widths(full: int, multiple: int, min_ratio: float) -> list[int]:
    step = multiple
    while step < 64 and full >= 8 * 2 * step:
        step *= 2
    while full > 16 * step:
        step *= 2
    unpruned = [full] if full % multiple == 0 else []
    return [*unpruned, *range((full - 1) // step * step, int(full * min_ratio) - 1, -step)]


def largest_within(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Accepted candidates that no other accepted one exceeds in every size."""
    accepted = [candidate for candidate in candidates if not candidate.missing]
    sizes = np.array([tuple(one.shape.sizes.values()) for one in accepted])
    return [
        one
        for index, one in enumerate(accepted)
        if not ((sizes >= sizes[index]).all(1) & (sizes > sizes[index]).any(1)).any()
    ]


def propose(cost: CostModel, settings: SearchSettings) -> list[Candidate]:
    """The largest shapes within the budget, at most `candidates`, spread over kinds and sizes.

    Raises:
        DoesNotFit: no shape meets the budget; names the closest one and the limits it exceeds.
    """
    shapes = enumerate_shapes(cost.spec, cost.kernels.width_multiple, settings.min_ratio)
    candidates = [cost(shape) for shape in shapes]
    if not candidates:
        raise DoesNotFit(
            f"no shape down to {settings.min_ratio:.0%} of the model has widths that are "
            f"multiples of {cost.kernels.width_multiple}, which {cost.kernels.engine} needs for "
            "int4; lower `min_ratio` or choose another engine"
        )
    largest = largest_within(candidates)
    if not largest:
        nearest = min(candidates, key=lambda one: (len(one.missing), one.parameters))
        raise DoesNotFit(
            f"no shape down to {settings.min_ratio:.0%} of the model meets the budget on "
            f"{cost.profile.name}; the closest, {nearest.shape}, exceeds: "
            f"{'; '.join(nearest.missing)}. Relax a limit, or choose a smaller teacher or another "
            "precision"
        )
    kinds: dict[str, list[Candidate]] = {}
    for candidate in sorted(largest, key=lambda one: (-one.parameters, one.shape)):
        kinds.setdefault(candidate.kind, []).append(candidate)
    share = -(-settings.candidates // len(kinds))
    chosen = [one for each in kinds.values() for one in _spread(each, share)]
    return chosen[: settings.candidates]


def _spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[index * len(candidates) // count] for index in range(count)]


def choose_finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of each kind by loss before training, then the best of the rest."""
    ranked = sorted(candidates, key=lambda one: one.loss)
    first = {candidate.kind: candidate for candidate in reversed(ranked)}
    chosen = sorted(first.values(), key=lambda one: one.loss)
    chosen += [one for one in ranked if one not in chosen]
    return chosen[:count]
