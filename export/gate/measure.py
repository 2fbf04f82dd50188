"""Measure an exported graph against its source, through the cache.

Each sequence is prefilled but for its tail, and the tail is decoded token by token, so that a
fault in either path, or in what the cache stores, shows in the figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from edgelm.bundle.records.gate_sample import OUTCOMES, GateSample, logits_in_parts
from edgelm.bundle.records.gates import Figures
from edgelm.export.gate.divergence import Distance
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.runtime.engines.session import Session

_TAIL = 64  # tokens of each sequence that are decoded one by one
_SAMPLES, _SAMPLE_LENGTH = 4, 256  # of the passage, that travel with the bundle
_ROWS = 256  # rows of logits that are computed at a time, at most
_LOGITS = _ROWS * 49_152  # logits that are computed and compared at a time: 50 MB per tensor


class EvalSettings(NamedTuple):
    """How a graph is run.

    tail: tokens of each sequence that are decoded one by one; 64 if None.
    prefill_chunk: tokens that are processed at once.
    """

    tail: int | None
    prefill_chunk: int


@dataclass(frozen=True)
class Evaluator:
    """Measures sessions on a passage, given the source's final hidden states on it."""

    reference: Reference
    passage: Passage
    hidden: torch.Tensor

    @classmethod
    def from_passage(cls, reference: Reference, passage: Passage) -> "Evaluator":
        """Run the source over the passage, two sequences at a time."""
        parts = [reference.hidden_states(rows) for rows in passage.tokens.split(2)]
        return cls(reference, passage, torch.cat(parts))

    def measure(self, session: Session, *, tail: int | None = None) -> Figures:
        """Distance of a session's logits from the source's; `tail` as in EvalSettings."""
        distance = Distance()
        head = self.reference.head()
        for tokens, hidden in zip(self.passage.tokens, self.hidden, strict=True):
            at = 0
            for whole in session_logits(session, tokens.numpy(), tail or _TAIL):
                end = at + len(whole)
                source = self.reference.logits(hidden[at:end], head)
                distance.add(source, torch.from_numpy(whole), tokens[at + 1 : end + 1])
                at = end
        return distance.figures()

    def sample(self) -> GateSample:
        """A part of the gate for a device without the source."""
        tokens = self.passage.tokens[:_SAMPLES, :_SAMPLE_LENGTH]
        head = self.reference.head()
        rows = rows_of_logits(head.shape[0])
        top_tokens, top_logprobs, target_logprobs = [], [], []
        for row, hidden in zip(tokens, self.hidden, strict=False):
            for at in range(0, len(row), rows):
                logits = self.reference.logits(hidden[at : min(at + rows, len(row))], head)
                logprobs = torch.log_softmax(logits, -1)
                top = logprobs.topk(min(OUTCOMES, logprobs.shape[-1]), -1)
                top_tokens.append(top.indices.int())
                top_logprobs.append(top.values)
                targets = row[at + 1 : at + rows + 1, None]
                target_logprobs.append(logprobs[: len(targets)].gather(1, targets)[:, 0])
        parts = (torch.cat(each) for each in (top_tokens, top_logprobs, target_logprobs))
        return GateSample(
            tokens.numpy(), *(part.unflatten(0, (len(tokens), -1)).numpy() for part in parts)
        )


def rows_of_logits(vocabulary: int) -> int:
    """How many rows of logits are computed at a time."""
    return max(1, min(_ROWS, _LOGITS // vocabulary))


def session_logits(session: Session, tokens: np.ndarray, tail: int) -> Iterator[np.ndarray]:
    """Logits of all tokens in parts, each valid until the next; the last `tail` run one by one."""
    rows = rows_of_logits(session.vocab_size)
    return logits_in_parts(session, tokens, tail=tail, rows=rows)
