"""Log-likelihoods of continuations by a Hugging Face model, in padded batches."""

from collections.abc import Callable, Iterator, Sequence

import torch

from edgelm.compress.evaluation.backend import Continuation
from edgelm.compress.evaluation.encoding import check_pairs
from edgelm.compress.head import Head
from edgelm.compress.model import Model, spec_of

_BATCH_TOKENS = 4096


def continuations(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Continuation]:
    """Log-likelihood of each continuation after its context, in one pass over both.

    Args:
        model: a causal language model.
        pairs: token ids of contexts and continuations; neither may be empty. Contexts are
            truncated on the left to the model's longest sequence.
        progress: called with the number done and in total.

    Raises:
        BadInput: an empty context or continuation, or one that leaves no room for a context.
    """
    spec = spec_of(model)
    head = Head.from_model(model)
    longest = spec.max_position_embeddings
    check_pairs(pairs, longest)
    found: list[Continuation | None] = [None] * len(pairs)
    done = 0
    with torch.inference_mode():
        for indices in _batches(pairs):
            rows = [[*pairs[index][0], *pairs[index][1]][-longest:] for index in indices]
            width = max(map(len, rows))
            # Padded on the right, which does not affect earlier positions.
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            hidden = model.base_model(input_ids=tokens.to(model.device), use_cache=False)
            for index, row, states in zip(indices, rows, hidden.last_hidden_state, strict=True):
                count = len(pairs[index][1])
                target = torch.tensor(row[-count:], device=model.device)
                logits = head.logits(states[len(row) - count - 1 : len(row) - 1])
                likely = logits.log_softmax(-1).gather(1, target[:, None]).sum()
                greedy = bool((logits.argmax(-1) == target).all())
                found[index] = Continuation(float(likely), count, greedy)
            done += len(indices)
            if progress:
                progress(done, len(pairs))
    return [one for one in found if one is not None]


def _batches(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[list[int]]:
    """Batches of similar lengths, longest first, so that the first batch needs the most memory."""
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    batch: list[int] = []
    for index in order:
        width = sum(map(len, pairs[batch[0] if batch else index]))
        if batch and width * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
