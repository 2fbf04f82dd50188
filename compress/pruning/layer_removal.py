"""How much worse a model is without a layer, or without a block of layers.

Minitron's other two depth scores: the rise in perplexity without one layer (arXiv 2407.14679,
section 2.2), and the score on a task without a contiguous block (arXiv 2408.11796, section 3.3,
after Gromov et al., arXiv 2403.17887). On downstream tasks removing contiguous blocks is better,
which neither the loss nor block influence shows.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edgelm.compress.evaluation.next_token import mean_loss
from edgelm.compress.model import Model, spec_of
from edgelm.compress.pruning.shape import check_has_block
from edgelm.spec.prunable import lasting_layers

Measure = Callable[[Model], float]
"""A model's loss; lower is better."""


def text_loss(batches: Sequence[torch.Tensor]) -> Measure:
    """A measure: the next-token loss on int64 tokens [B, T], in nats per token."""
    return lambda model: mean_loss(model, batches)


def layer_losses(model: Model, measure: Measure) -> torch.Tensor:
    """How much the loss rises without each layer, fp32 [layers]: scores for `Importance.layers`."""
    unpruned = measure(model)
    rises = torch.tensor([loss - unpruned for loss in block_losses(model, 1, measure)])
    removable = rises[rises.isfinite()]
    highest = float(removable.max()) if len(removable) else 0.0  # for those that no student lacks
    return rises.nan_to_num(posinf=highest)


def block_losses(
    model: Model,
    size: int,
    measure: Measure,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """The loss without layers i to i + size - 1, for every i; one measurement each.

    It is infinite without a layer that every student keeps, because others need it.
    """
    lasting = lasting_layers(spec_of(model))
    starts = len(model.base_model.layers) - size + 1
    losses = []
    for start in range(starts):
        block = range(start, start + size)
        if any(layer in block for layer in lasting):
            losses.append(math.inf)
        else:
            with without_layers(model, block):
                losses.append(measure(model))
        if progress:
            progress(start + 1, starts)
    return losses


def layers_without_best_block(model: Model, size: int, measure: Measure) -> list[int]:
    """The layers that remain when the contiguous block of least loss is removed."""
    check_has_block(spec_of(model), size)
    losses = block_losses(model, size, measure)
    start = min(range(len(losses)), key=losses.__getitem__)
    return [i for i in range(len(model.base_model.layers)) if not start <= i < start + size]


@contextmanager
def without_layers(model: Model, layers: Collection[int]) -> Iterator[None]:
    """Within the context, the given layers return their input."""
    # Whose class reads the first of several outputs.
    in_tuple = spec_of(model).family == "falcon_h1"

    def skip(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if in_tuple else hidden_states

    skipped = [model.base_model.layers[index] for index in layers]
    try:
        for layer in skipped:
            layer.forward = skip
        yield
    finally:
        for layer in skipped:
            del layer.forward
