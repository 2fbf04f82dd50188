"""The gate's texts, and their vectors by the source and by a graph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgelm.bundle.records.embedding import EmbeddingFigures
from edgelm.embedding import EmbeddingSettings
from edgelm.errors import BadInput
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import read_documents
from edgelm.files.hashing import file_sha256
from edgelm.runtime.embedding.encoding import TextEncoder
from edgelm.runtime.embedding.pooling import finish, pool, text_vector
from edgelm.runtime.engines.session import Session, Tokens

_TEXTS = 48  # half passages, half single sentences
_MIN_CHARACTERS = 20
_MAX_TOKENS = 256
_BATCH = 16  # texts that the source is run on at once

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GateTexts:
    """Tokens of the texts that are compared, and the file that they are from."""

    tokens: list[Tokens]
    name: str
    sha256: str


def read_gate_texts(path: Path, encoder: TextEncoder) -> GateTexts:
    """Passages and sentences of a text file, evenly spread over it.

    Sentences stand for queries: they have the model's prompt of that name, if there is one.

    Raises:
        BadInput: the file cannot be read, or has fewer than two passages or sentences.
    """
    text = "\n\n".join(read_documents(path))
    passages = _long_enough(re.split(r"\n\s*\n", text))
    sentences = _long_enough(re.split(r"(?<=[.!?])\s+", text))
    prompt = encoder.settings.prompts.get("query", "")
    default = encoder.prompt_text(None)
    tokens = [encoder.encode(one, default, truncate=True) for one in passages]
    tokens += [encoder.encode(one, prompt or default, truncate=True) for one in sentences]
    if len(tokens) < 2:
        raise BadInput(f"{path} has no two passages to compare; give a longer text")
    return GateTexts(tokens, path.name, file_sha256(path))


def gate_encoder(encoder: TextEncoder) -> TextEncoder:
    """The encoder with the length that the gate cuts texts to."""
    return TextEncoder(
        encoder.tokenizer,
        encoder.settings,
        min(encoder.max_tokens, _MAX_TOKENS),
        encoder.vocab_size,
    )


def source_vectors(
    reference: Reference, texts: Sequence[Tokens], settings: EmbeddingSettings
) -> Vectors:
    """Vectors [n, d] by the source in fp32.

    Texts run together, filled at their ends: no token sees those behind it.
    """
    pooled = []
    for at in range(0, len(texts), _BATCH):
        batch = texts[at : at + _BATCH]
        filled = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
        for row, tokens in zip(filled, batch, strict=True):
            row[: len(tokens)] = torch.from_numpy(tokens)
        hidden = reference.hidden_states(filled).numpy()
        pooled += [
            pool(rows[: len(tokens)], settings.pooling)
            for rows, tokens in zip(hidden, batch, strict=True)
        ]
    return finish(np.stack(pooled), settings)


def session_vectors(
    session: Session, texts: Sequence[Tokens], settings: EmbeddingSettings
) -> Vectors:
    """Vectors [n, d] by a graph."""
    rows = [text_vector(session, tokens, settings.pooling) for tokens in texts]
    return finish(np.stack(rows), settings)


def compare_vectors(source: Vectors, bundle: Vectors) -> EmbeddingFigures:
    """How far vectors [n, d] are from those of the source."""
    a, b = (_unit(one.astype(np.float64)) for one in (source, bundle))
    distances = np.clip(1 - (a * b).sum(1), 0.0, 2.0)
    same = _nearest(a) == _nearest(b)
    return EmbeddingFigures(
        float(distances.mean()), float(distances.max()), float(same.mean()), len(a)
    )


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = vectors / np.maximum(lengths, 1e-12)
    return unit


def _nearest(unit: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For every vector the index of the nearest other one."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: npt.NDArray[np.int64] = cosines.argmax(1)
    return nearest


def _long_enough(parts: Sequence[str]) -> list[str]:
    """Half of the gate's texts, of those that are more than a heading."""
    found = [one.strip() for one in parts if len(one.strip()) >= _MIN_CHARACTERS]
    count = min(len(found), _TEXTS // 2)
    return [found[round(at * (len(found) - 1) / max(1, count - 1))] for at in range(count)]
