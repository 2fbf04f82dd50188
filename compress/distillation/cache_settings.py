"""What is stored of a teacher's predictions."""

from typing import Literal

import msgspec

from edgelm.compress.ranges import Count, Seed

MOST_SHORT_IDS = 1 << 16  # tokens whose ids fit in 16 bits

CacheKind = Literal["top-k", "sampled"]


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of a teacher at each position.

    kind: tokens sampled from its distribution, or the most probable ones and the rest as one event
    size: tokens per position
    seed: random seed of the sampling
    """

    kind: CacheKind = "sampled"
    size: Count = 64
    seed: Seed = 0

    def bytes_per_position(self, vocab_size: int) -> int:
        """Bytes that are stored for one position: ids, and probabilities of the likely tokens."""
        ids = 2 if vocab_size <= MOST_SHORT_IDS else 4
        return self.size * (ids + (2 if self.kind == "top-k" else 0))
