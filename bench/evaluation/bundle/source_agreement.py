"""KL from the source of a bundle on rows of tokens, through the bundle's cache."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from edgelm.checkpoint.source import Checkpoint
from edgelm.compress.evaluation.backend import Progress
from edgelm.compress.evaluation.metrics import Metric, fraction_of, mean_of
from edgelm.export.gate.measure import Evaluator
from edgelm.export.gate.source_answers import can_sample
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.runtime.engines.session import Session


class SourceAgreement:
    """A checkpoint that a session is compared with, row by row."""

    def __init__(self, checkpoint: Checkpoint, session: Session) -> None:
        self._reference = Reference(checkpoint, context=session.capacity)
        self._session = session

    def __call__(self, rows: Sequence[Sequence[int]], progress: Progress) -> dict[str, Metric]:
        """`kl` in nats per token, and `top1` agreement, by row."""
        divergences, agreed = list[float](), list[float]()
        # Read from disk and dequantized for each row only where memory is too small for all.
        with self._reference.cached_reads() if can_sample(self._reference) else nullcontext():
            for row in rows:
                passage = Passage(torch.tensor([list(row)]), "rows", "")
                figures = Evaluator.from_passage(self._reference, passage).measure(self._session)
                divergences.append(figures.kl)
                agreed.append(figures.top1)
                progress(len(divergences), len(rows))
        return {"kl": mean_of(divergences, "lower"), "top1": fraction_of(agreed)}
