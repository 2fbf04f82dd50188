"""The part of a manifest that only bundles of embedding models have, and their gate."""

from typing import Annotated, Literal

import msgspec

from edgelm.embedding import EmbeddingSettings
from edgelm.errors import GateFailed

EmbeddingClass = Literal["unquantized", "8-bit", "4-bit"]
_Distance = Annotated[float, msgspec.Meta(ge=0, le=2)]

MAX_DISTANCE: dict[EmbeddingClass, float] = {"unquantized": 0.001, "8-bit": 0.01, "4-bit": 0.03}
"""Largest mean cosine distance to the source's vectors (docs/decisions/embedding-gate.md)."""


class EmbeddingFigures(msgspec.Struct, frozen=True):
    """The difference between the vectors of a bundle and of its source for the same texts.

    mean, worst: cosine distances, 1 - cos.
    neighbors: the share of texts whose nearest other text is the same.
    texts: how many.
    """

    mean: _Distance
    worst: _Distance
    neighbors: Annotated[float, msgspec.Meta(ge=0, le=1)]
    texts: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]


class EmbeddingGate(msgspec.Struct, frozen=True):
    """The result of the gate.

    gate_class: of the coarsest precision.
    limit: the largest mean distance that passes.
    text, text_sha256: the text that was compared on.
    """

    gate_class: EmbeddingClass
    figures: EmbeddingFigures
    limit: _Distance
    passed: bool
    enforced: bool
    text: str
    text_sha256: str


class EmbeddingSample(msgspec.Struct, frozen=True):
    """Tokens of a text, and the vector that the graph gave for them when it was exported."""

    tokens: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 24)], ...]
    vector: tuple[float, ...]


class EmbeddingRecord(msgspec.Struct, frozen=True):
    """How texts become vectors of `dimensions` numbers, and what the gate measured.

    `sample` is what a self-test computes again on the machine that runs the bundle.
    """

    settings: EmbeddingSettings
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    gate: EmbeddingGate | None = None
    sample: tuple[EmbeddingSample, ...] = ()


def enforce_embedding(gate: EmbeddingGate) -> None:
    """Raise GateFailed for a gate that failed and is enforced."""
    if gate.passed or not gate.enforced:
        return
    raise GateFailed(
        f"the quality gate failed: the vectors' mean cosine distance to the source's is "
        f"{gate.figures.mean:.4f} over {gate.figures.texts} texts, expected at most {gate.limit:g} "
        f"({gate.gate_class}); choose a precision with more bits, or --gate off"
    )
