"""What is stored of a teacher's predictions."""

from typing import Literal

import msgspec

from edgelm.compress.data.token_bytes import token_bytes
from edgelm.compress.ranges import Count, Seed

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
        return self.size * (token_bytes(vocab_size) + (2 if self.kind == "top-k" else 0))
