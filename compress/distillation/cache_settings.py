"""What is stored of a teacher's predictions."""

from typing import Literal

import msgspec

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
