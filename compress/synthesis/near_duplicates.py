"""Exact and near duplicates, by MinHash.

The similarity of two texts is the Jaccard index of their shingles (five words in a row):
intersection over union. MinHash estimates it from one small signature per text (Broder 1997): the
probability that two sets agree in the smallest value of a random hash is their Jaccard index. Bands
of a signature are hash keys, which find candidates without comparing all pairs (Leskovec,
Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).

A text takes about 3 KB of memory, whatever its length.
"""

import hashlib

import numpy as np

from edgelm.compress.synthesis.text_filters import words

SHINGLE = 5
# Two texts with a Jaccard index of 0.8 share a band with probability 99.8%; with 0.5, 28%.
_BANDS, _ROWS = 21, 6
_RNG = np.random.default_rng(20_260_101)
_FACTORS = _RNG.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RNG.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)


class NearDuplicateIndex:
    """The texts accepted so far.

    Args:
        jaccard_threshold: least estimated Jaccard index of a near duplicate, above 0 up to 1.
    """

    def __init__(self, jaccard_threshold: float = 0.8) -> None:
        self.jaccard_threshold = jaccard_threshold
        self._exact: set[bytes] = set()
        self._signatures: list[np.ndarray] = []
        self._bands: dict[int, list[int]] = {}

    def has_exactly(self, text: str) -> bool:
        """Whether a text of the same words in the same order was added."""
        return _digest(text) in self._exact

    def has_nearly(self, text: str) -> bool:
        """Whether a near duplicate was added; the standard error of the estimate is 0.04."""
        signature = _signature(text)
        candidates = {index for key in _keys(signature) for index in self._bands.get(key, ())}
        return any(
            np.mean(self._signatures[index] == signature) >= self.jaccard_threshold
            for index in candidates
        )

    def add(self, text: str) -> None:
        """Add a text."""
        self._exact.add(_digest(text))
        signature = _signature(text)
        for key in _keys(signature):
            self._bands.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature)


def _digest(text: str) -> bytes:
    # A text without words is compared by its characters.
    content = " ".join(words(text)) or text
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _signature(text: str) -> np.ndarray:
    parts = words(text) or [text]
    count = max(1, len(parts) - SHINGLE + 1)
    shingles = {" ".join(parts[i : i + SHINGLE]) for i in range(count)}
    # blake2b and not hash(): equal in every process, so that a resumed run decides the same.
    joined = b"".join(
        hashlib.blake2b(shingle.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for shingle in sorted(shingles)
    )
    hashes = np.frombuffer(joined, dtype="<u8")
    smallest = np.full(len(_FACTORS), np.iinfo(np.uint64).max, dtype=np.uint64)
    for part in np.array_split(hashes, len(hashes) // 1024 + 1):
        # Multiplication wraps around: a hash modulo 2^64, whose upper half is well mixed.
        mixed = part[:, None] * _FACTORS + _OFFSETS
        smallest = np.minimum(smallest, mixed.min(axis=0))
    return (smallest >> np.uint64(32)).astype(np.uint32)


def _keys(signature: np.ndarray) -> list[int]:
    return [
        hash((band, row.tobytes())) for band, row in enumerate(signature.reshape(_BANDS, _ROWS))
    ]
