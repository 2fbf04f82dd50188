"""How far one model's next-token distributions are from another's, on the same tokens."""

import math

import torch

from edgelm.bundle.records.gates import Figures
from edgelm.errors import BadCheckpoint, GateFailed
from edgelm.perplexity import exponential


class Distance:
    """Sums over rows of logits; `figures` turns the sums into means."""

    def __init__(self) -> None:
        self.kl = 0.0
        self.kl_squares = 0.0
        self.agreed = 0
        self.rows = 0
        self.source_loss = 0.0
        self.loss = 0.0
        self.loss_gap_squares = 0.0
        self.targets = 0

    def add(self, source: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> None:
        """Add rows of logits [rows, vocab] and the tokens that followed them.

        `targets` may be one shorter than the rows: the last row's successor is unknown.

        Raises:
            BadCheckpoint: the source's logits are not finite.
            GateFailed: the other's are not; such a graph fails whatever the limits.
        """
        if not bool(torch.isfinite(source).all()):
            raise BadCheckpoint(
                f"the source computes NaN or infinity (at token {self.rows + 1:,} of the gate text "
                "or later): its weights are damaged, or its configuration is another model's"
            )
        if not bool(torch.isfinite(other).all()):
            raise GateFailed(
                "the exported graph computes NaN or infinity (at token "
                f"{self.rows + 1:,} of the gate text or later), where its source does not: its "
                "values exceed the range of the target's types; choose a wider one (--precision "
                "bf16, --kv bf16 or fp32)"
            )
        source = torch.log_softmax(source, -1)
        other = torch.log_softmax(other, -1)
        self.agreed += int((source.argmax(-1) == other.argmax(-1)).sum())
        index = targets[:, None]
        likely = source[: len(targets)].gather(1, index)
        ours = other[: len(targets)].gather(1, index)
        self.source_loss -= float(likely.sum())
        self.loss -= float(ours.sum())
        self.loss_gap_squares += float((likely - ours).double().square().sum())
        divergence = (source.exp() * (source - other)).sum(-1).double()
        self.kl += float(divergence.sum())
        self.kl_squares += float(divergence.square().sum())
        self.rows += len(source)
        self.targets += len(targets)

    def figures(self) -> Figures:
        """Means over all rows added."""
        loss, source_loss = self.loss / self.targets, self.source_loss / self.targets
        mean, top1 = self.kl / self.rows, self.agreed / self.rows
        gap = loss - source_loss
        gap_error = math.sqrt(
            max(0.0, self.loss_gap_squares / self.targets - gap**2) / self.targets
        )
        ratio = exponential(gap)
        return Figures(
            # Rounding can leave the KL of identical models just below zero.
            kl=max(0.0, mean),
            top1=top1,
            perplexity_ratio=ratio,
            perplexity=exponential(loss),
            tokens=self.rows,
            kl_error=self._standard_error(self.kl_squares / self.rows - mean**2),
            top1_error=self._standard_error(top1 * (1 - top1)),
            perplexity_ratio_error=ratio * gap_error,
        )

    def _standard_error(self, variance: float) -> float:
        """Of a mean over the rows, as if they were independent."""
        return math.sqrt(max(0.0, variance) / self.rows)
