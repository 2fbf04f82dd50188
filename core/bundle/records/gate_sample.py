"""A sample of the quality gate, shipped in the bundle for devices without the source model.

It holds tokens and the source's distribution over the likeliest next tokens, with all others as
one outcome. KL over such a coarse partition is a lower bound of the full KL (data processing
inequality), and close to it, since a language model puts most of its mass on few tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from edgelm.bundle import Manifest, bundle_file
from edgelm.bundle.records.gates import Figures
from edgelm.errors import BadBundle
from edgelm.reasons import reason

FILE = "gate.npz"
OUTCOMES = 64
_MAX_BYTES = 256 << 20  # of the arrays; a typical sample has 10 MB
_BLOCK = 2**21  # logits that are converted to fp64 at a time: 17 MB


class _Session(Protocol):
    @property
    def chunk(self) -> int:
        """See edgelm.runtime.engines.session."""

    @property
    def vocab_size(self) -> int:
        """See edgelm.runtime.engines.session."""

    def advance(self, tokens: npt.NDArray[np.int64], *, logits: int = 1) -> npt.NDArray[np.float32]:
        """See edgelm.runtime.engines.session."""

    def rewind(self, length: int) -> None:
        """See edgelm.runtime.engines.session."""


class GateSample(NamedTuple):
    """The source model's predictions on a few sequences.

    tokens: the text, int64 [S, L].
    top_tokens: the source's likeliest next tokens at each position, int32 [S, L, N].
    top_logprobs: their log-probabilities, fp32 [S, L, N].
    target_logprobs: log-probabilities of the tokens that the text continues with, fp32 [S, L - 1].
    """

    tokens: npt.NDArray[np.int64]
    top_tokens: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]
    target_logprobs: npt.NDArray[np.float32]


# Names of the fields' arrays in the file.
_ARRAYS = ("tokens", "likeliest", "log_probabilities", "following")


def write_sample(folder: Path, sample: GateSample) -> None:
    """Write the sample into a bundle."""
    np.savez_compressed(
        folder / FILE,
        tokens=sample.tokens,
        likeliest=sample.top_tokens,
        log_probabilities=sample.top_logprobs,
        following=sample.target_logprobs,
    )


def read_sample(folder: Path, manifest: Manifest) -> GateSample | None:
    """The sample of a bundle, if its manifest lists one.

    Raises:
        BadBundle: the file is damaged, or not a sample for this model.
    """
    path = bundle_file(folder, manifest, FILE)
    if path is None:
        return None
    try:
        sample = _load(path)
        _check(sample, manifest)
    # A damaged archive can fail in any way: in the zip, its compression, or the arrays' headers.
    except Exception as error:
        raise BadBundle(
            f"{path} is damaged ({reason(error)}); copy or export the bundle again"
        ) from None
    return sample


def _load(path: Path) -> GateSample:
    with ZipFile(path) as archive:  # the unpacked size, before unpacking
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, expected at most {_MAX_BYTES}")
    with np.load(path, allow_pickle=False) as arrays:
        return GateSample(*(arrays[name] for name in _ARRAYS))


def _check(sample: GateSample, manifest: Manifest) -> None:
    sequences, length = sample.tokens.shape
    shape = (sequences, length, sample.top_tokens.shape[-1])
    shapes = ((sequences, length), shape, shape, (sequences, length - 1))
    if tuple(array.shape for array in sample) != shapes or min(shape) < 1 or length < 2:
        raise ValueError(f"its arrays have the shapes {[array.shape for array in sample]}")
    if [array.dtype.kind for array in sample] != ["i", "i", "f", "f"]:
        raise ValueError(f"its arrays have the types {[str(array.dtype) for array in sample]}")
    vocabulary, context = manifest.spec.vocab_size, manifest.limits.context
    for ids in (sample.tokens, sample.top_tokens):
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f"it has token {ids.max()}, the vocabulary {vocabulary} tokens")
    if length > context:
        raise ValueError(f"its sequences have {length} tokens, the context {context}")
    if not (np.isfinite(sample.top_logprobs).all() and np.isfinite(sample.target_logprobs).all()):
        raise ValueError("its probabilities are not numbers")


def measure_sample(sample: GateSample, session: _Session, *, tail: int = 32) -> Figures:
    """Compare a session with the source model; the last `tail` tokens are decoded one by one.

    NaN logits give NaN figures, which fail every gate.
    """
    divergence, agreed, loss, rows = 0.0, 0, 0.0, 0
    for number, tokens in enumerate(sample.tokens):
        known, top = sample.top_logprobs[number], sample.top_tokens[number]
        ours = sequence_predictions(session, tokens, top, tail=tail)
        divergence += float(coarse_divergence(known, ours.logprobs).sum())
        agreed += int((ours.top1 == top[:, 0]).sum())
        loss -= float(ours.target_logprobs.sum())
        rows += len(tokens)
    targets = sample.target_logprobs.size
    mean, source_mean = loss / targets, -float(sample.target_logprobs.sum()) / targets
    return Figures(
        kl=_not_below_zero(divergence / rows),
        top1=agreed / rows,
        perplexity_ratio=float(np.exp(mean - source_mean)),
        perplexity=float(np.exp(mean)),
        tokens=rows,
    )


def _not_below_zero(kl: float) -> float:
    """Rounding takes a small divergence below 0; `max` would make 0 of NaN too."""
    return 0.0 if kl < 0 else kl


class Predictions(NamedTuple):
    """What a session predicts behind each of L tokens.

    logprobs: log-probabilities of N outcomes each, fp64 [L, N].
    top1: the likeliest token, int64 [L].
    target_logprobs: log-probabilities of the tokens that follow, fp64 [L - 1].
    """

    logprobs: npt.NDArray[np.float64]
    top1: npt.NDArray[np.int64]
    target_logprobs: npt.NDArray[np.float64]


def sequence_predictions(
    session: _Session,
    tokens: npt.NDArray[np.int64],
    outcomes: npt.NDArray[np.integer[Any]],
    *,
    tail: int = 32,
) -> Predictions:
    """Predictions of `outcomes` [L, N] behind each of `tokens` [L].

    The last `tail` tokens are decoded one by one.
    """
    chosen, top1, following = [], [], []
    at = 0
    rows = max(1, _BLOCK // session.vocab_size)
    for logits in logits_in_parts(session, tokens, tail=tail, rows=rows):
        end = at + len(logits)
        exact = logits.astype(np.float64)
        exact -= exact.max(1, keepdims=True)
        total = np.log(np.exp(exact).sum(1, keepdims=True))
        chosen.append(np.take_along_axis(exact, outcomes[at:end].astype(np.int64), 1) - total)
        top1.append(logits.argmax(1))
        targets = tokens[at + 1 : end + 1, None]
        known = len(targets)  # what follows the last token is not known
        following.append(np.take_along_axis(exact[:known], targets, 1) - total[:known])
        at = end
    return Predictions(
        np.concatenate(chosen), np.concatenate(top1), np.concatenate(following)[:, 0]
    )


def logits_in_parts(
    session: _Session, tokens: npt.NDArray[np.int64], *, tail: int, rows: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Logits behind all tokens, at most `rows` [rows, vocab] at a time, each valid until the next.

    The last `tail` tokens are decoded one by one. Those before are prefilled in whole chunks, as a
    prompt is: quantized kernels compute other logits where a run has another number of rows.
    """
    session.rewind(0)
    body = len(tokens) - min(tail, len(tokens) // 2)
    step = session.chunk * max(1, rows // session.chunk)
    for at in range(0, body, step):
        part = tokens[at : min(at + step, body)]
        logits = session.advance(part, logits=len(part))
        for start in range(0, len(part), rows):
            yield logits[start : start + rows]
    for at in range(body, len(tokens), rows):
        steps = tokens[at : at + rows, None]
        yield np.concatenate([session.advance(token).copy() for token in steps])


def coarse_divergence(
    source: npt.NDArray[np.floating[Any]], ours: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """KL by row of two distributions over the listed outcomes and one of all others."""
    p, q = np.exp(source.astype(np.float64)), np.exp(ours)
    listed = (p * (source - ours)).sum(1)
    rest_p, rest_q = (np.clip(1 - x.sum(1), 1e-12, 1.0) for x in (p, q))
    total: npt.NDArray[np.float64] = listed + rest_p * (np.log(rest_p) - np.log(rest_q))
    return total
