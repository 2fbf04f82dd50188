"""The self-test of an embedding model: the vectors that export computed, computed here again."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgelm.bundle.records.embedding import EmbeddingSample
from edgelm.runtime.embedding.embedding_methods import EmbeddingMethods

# Other processors' rounding of activations changes 0.0007 to 0.0013 with int8 and int4 weights of
# 16 layers (docs/results/, emulated processors), more with more layers; a fault changes far more.
_MAX_DISTANCE = 0.01


class VectorCheck(NamedTuple):
    """A comparison; `holds` is None where there was nothing to compare."""

    name: str
    holds: bool | None
    detail: str


def check_vectors(model: EmbeddingMethods, sample: Sequence[EmbeddingSample]) -> VectorCheck:
    """Compare this machine's vectors with those in the bundle."""
    if not sample:
        return VectorCheck("vectors", None, "the bundle has no sample; export it again")
    wanted = np.array([one.vector for one in sample])
    found = model.embed([list(one.tokens) for one in sample]).astype(np.float64)
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    distance = float((1 - (wanted * found).sum(1) / np.maximum(lengths, 1e-12)).max())
    detail = f"cosine distance {max(0.0, distance):.2g}, expected at most {_MAX_DISTANCE}"
    return VectorCheck("vectors", distance <= _MAX_DISTANCE, f"{detail}, of {len(sample)} texts")
