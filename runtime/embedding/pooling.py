"""From a session's hidden states to a vector."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt

from edgelm.embedding import EmbeddingSettings, Pooling
from edgelm.errors import BadBundle
from edgelm.runtime.engines.session import Session, TextRuns, Tokens

Vector = npt.NDArray[np.float32]
Turn = Callable[[], AbstractContextManager[object]]


def text_vector(
    session: Session, tokens: Tokens, pooling: Pooling, *, turn: Turn = nullcontext
) -> Vector:
    """The pooled hidden state [hidden_size] of a text; what the session held is forgotten.

    The tokens always run from the first one on, in the same chunks: a text has the same vector
    whatever ran before it.

    Args:
        session: of an embedding model.
        tokens: of the text.
        pooling: which hidden states are the vector.
        turn: what each chunk runs within.
    """
    if pooling == "last":
        *_, rows = _chunks(session, tokens, 1, turn)
        vector: Vector = rows[-1].copy()
        return vector
    first: Vector | None = None
    total = np.zeros(session.vocab_size, dtype=np.float64)
    for rows in _chunks(session, tokens, session.chunk, turn):
        first = rows[0].copy() if first is None else first
        total += rows.sum(0, dtype=np.float64)
    assert first is not None, "a text has tokens"
    return first if pooling == "first" else (total / len(tokens)).astype(np.float32)


def batch_vectors(runs: TextRuns, texts: Sequence[Tokens], pooling: Pooling) -> Vector:
    """The pooled hidden states [n, hidden_size] of several texts, which run at once.

    Args:
        runs: of an embedding model's engine.
        texts: their tokens; see TextRuns.
        pooling: which hidden states are the vector.
    """
    ends = [len(tokens) - 1 for tokens in texts]
    if pooling == "mean":
        hidden = runs.run(texts, range(max(ends) + 1))
        pairs = zip(hidden, ends, strict=True)
        means = [rows[: end + 1].sum(0, dtype=np.float64) / (end + 1) for rows, end in pairs]
        return np.stack(means).astype(np.float32)
    wanted = sorted(set(ends)) if pooling == "last" else [0]
    hidden = runs.run(texts, wanted)
    at = [wanted.index(end) if pooling == "last" else 0 for end in ends]
    vectors: Vector = hidden[np.arange(len(texts)), at]
    return vectors


def _chunks(session: Session, tokens: Tokens, most: int, turn: Turn) -> Iterator[Vector]:
    """The last hidden states, at most `most`, of each chunk of a text; valid until the next."""
    for at in range(0, len(tokens), session.chunk):
        chunk = tokens[at : at + session.chunk]
        with turn():
            if at == 0:
                session.rewind(0)
            yield session.advance(chunk, logits=min(most, len(chunk)))


def pool(hidden: npt.NDArray[np.float32], pooling: Pooling) -> Vector:
    """The vector of a text's hidden states [T, hidden_size]."""
    row: Vector = hidden[-1 if pooling == "last" else 0]
    mean: Vector = hidden.mean(0, dtype=np.float64).astype(np.float32)
    return mean if pooling == "mean" else row


def finish(
    vectors: npt.NDArray[np.float32], settings: EmbeddingSettings, dimensions: int | None = None
) -> npt.NDArray[np.float32]:
    """Pooled states [n, d] as the model's vectors [n, dimensions]: cut first, then normalized.

    Models that are trained for it (Matryoshka representations, arXiv 2205.13147) have the most
    important numbers first.

    Raises:
        BadBundle: they are not numbers.
    """
    cut = vectors[:, :dimensions].astype(np.float64)
    if not np.isfinite(cut).all():
        raise BadBundle("this model's vectors have NaN or infinity; export it again with more bits")
    if settings.normalize:
        cut /= np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
    return cut.astype(np.float32)
