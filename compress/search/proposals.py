"""Enumerate shapes, keep the largest within the budget, choose finalists."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from edgelm.compress.pruning.shape import Shape
from edgelm.compress.search.candidates import Candidate, CostModel
from edgelm.compress.search.settings import SearchSettings
from edgelm.errors import DoesNotFit
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import fixed_sizes, lasting_layers


def enumerate_shapes(spec: DecoderSpec, multiple: int, min_ratio: float) -> Iterator[Shape]:
    """All shapes on a grid of sizes that kernels accept, and transformers loads.

    Sizes go from `min_ratio` of the model's to the model's own. Each width has at most 16 steps,
    on multiples of 64 or of what the engine needs if that is more.
    """
    full, fixed = Shape.from_spec(spec), fixed_sizes(spec)
    groups = full.num_key_value_heads
    hidden_sizes = _widths(full.hidden_size, multiple, min_ratio)
    least = max(1, round(full.num_hidden_layers * min_ratio), len(lasting_layers(spec)))
    for layers in range(full.num_hidden_layers, least - 1, -1):
        for hidden in [full.hidden_size] if "hidden_size" in fixed else hidden_sizes:
            for ffn in _widths(full.intermediate_size, multiple, min_ratio):
                for per_group in range(full.heads_per_group, 0, -1):
                    heads = per_group * groups
                    small = heads < min_ratio * full.num_attention_heads
                    if small or heads * spec.head_dim % multiple:
                        continue
                    shape = Shape(layers, hidden, ffn, heads, groups)
                    if shape.fits_heads(spec) and shape.fits_groups(spec):
                        yield shape


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
    sizes = np.array([msgspec.structs.astuple(one.shape) for one in accepted])
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
