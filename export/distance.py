"""How far one model's next-token distributions are from another's, on the same tokens."""

import torch

from edgelm.gates import Figures


class Distance:
    """Sums over rows of logits; `figures` turns the sums into means."""

    def __init__(self) -> None:
        self.kl = 0.0
        self.agreed = 0
        self.rows = 0
        self.source_loss = 0.0
        self.loss = 0.0
        self.targets = 0

    def add(self, source: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> None:
        """Add rows of logits [rows, vocab] and the tokens that followed them.

        `targets` may be one shorter than the rows: the last row's successor is unknown.
        """
        source = torch.log_softmax(source, -1)
        other = torch.log_softmax(other, -1)
        self.agreed += int((source.argmax(-1) == other.argmax(-1)).sum())
        index = targets[:, None]
        self.source_loss -= float(source[: len(targets)].gather(1, index).sum())
        self.loss -= float(other[: len(targets)].gather(1, index).sum())
        self.kl += float((source.exp() * (source - other)).sum())
        self.rows += len(source)
        self.targets += len(targets)

    def figures(self) -> Figures:
        """Means over all rows added."""
        loss, source_loss = self.loss / self.targets, self.source_loss / self.targets
        return Figures(
            # Rounding can leave a KL of identical models a hair below zero.
            kl=max(0.0, self.kl / self.rows),
            top1=self.agreed / self.rows,
            perplexity_ratio=float(torch.tensor(loss - source_loss).exp()),
            perplexity=float(torch.tensor(loss).exp()),
            tokens=self.rows,
        )
