"""Transforms of logits, one per setting of a sampling: small and exact.

A transform takes a row of logits [vocab_size] and the tokens so far, and returns logits; what may
not be chosen is minus infinity. Order: the caller's processors, bias, penalties, temperature, then
the truncations (top-k, typical, top-p, min-p), each on the distribution that the one before it
left, as llama.cpp and Hugging Face do. Typical sampling: arXiv 2202.00666; min-p: arXiv 2407.01082.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadInput
from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.runtime.generation.sampling.settings import MAX_BIAS, Sampling
from edgelm.runtime.generation.sampling.token_counts import TokenCounts

# Up to here everything is computed in double precision.
_SMALL_VOCABULARY = 8192
_LARGEST = float(np.finfo(np.float32).max)

Transform = Callable[[Row, Sequence[int]], Row]


def transforms(sampling: Sampling, prompt_length: int) -> list[Transform]:
    """List the transforms that do something, in order."""
    s = sampling
    steps: list[Transform] = []
    if s.logit_bias:
        steps.append(logit_bias(s.logit_bias))
    if s.repetition_penalty != 1:
        steps.append(repetition_penalty(s.repetition_penalty))
    if s.frequency_penalty or s.presence_penalty:
        steps.append(count_penalty(s.frequency_penalty, s.presence_penalty, prompt_length))
    if s.temperature == 0:
        return steps
    if s.temperature != 1:
        steps.append(temperature(s.temperature))
    if s.top_k:
        steps.append(top_k(s.top_k))
    if s.typical_p < 1:
        steps.append(typical(s.typical_p))
    if s.top_p < 1:
        steps.append(top_p(s.top_p))
    if s.min_p > 0:
        steps.append(min_p(s.min_p))
    return steps


def softmax(row: Row) -> npt.NDArray[np.float64]:
    """Probabilities of a row, in double precision."""
    weights = relative_weights(row)
    weights /= weights.sum()
    return weights


def relative_weights(row: Row) -> npt.NDArray[np.float64]:
    """Probabilities of a row but for their sum: the largest is 1."""
    weights = row.astype(np.float64)
    weights -= weights.max()
    return np.exp(weights, out=weights)


def log_softmax(row: Row) -> npt.NDArray[np.float64]:
    """Log-probabilities of a row, in double precision."""
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - math.log(float(np.exp(shifted).sum()))


def logit_bias(bias: Mapping[int, float]) -> Transform:
    """Add to single tokens; minus infinity forbids one."""
    tokens, values = list(bias), np.array(list(bias.values()), dtype=np.float32)

    def apply(row: Row, _: Sequence[int]) -> Row:
        row = row.copy()
        row[tokens] += values
        if row.max() == -np.inf:
            raise BadInput("logit_bias forbids every token; leave at least one")
        return row

    return apply


def repetition_penalty(penalty: float) -> Transform:
    """Divide positive logits of tokens seen, multiply negative ones."""
    counts = TokenCounts()

    def apply(row: Row, history: Sequence[int]) -> Row:
        counts.update(history)
        seen = row[counts.tokens].astype(np.float64)
        with np.errstate(over="ignore"):
            changed = np.where(seen > 0, seen / penalty, seen * penalty)
        # Out of the range of fp32 is far, not forbidden; what is forbidden stays so.
        changed = np.where(seen == -np.inf, seen, np.clip(changed, -_LARGEST, _LARGEST))
        row = row.copy()
        row[counts.tokens] = changed
        return row

    return apply


def count_penalty(frequency: float, presence: float, prompt_length: int) -> Transform:
    """Subtract for each time, and for any time, a token was generated."""
    counts = TokenCounts(start=prompt_length)

    def apply(row: Row, history: Sequence[int]) -> Row:
        counts.update(history)
        row = row.copy()
        row[counts.tokens] -= (frequency * counts.counts + presence).astype(np.float32)
        return row

    return apply


def temperature(value: float) -> Transform:
    """Flatten above 1, sharpen below."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        if len(row) > _SMALL_VOCABULARY and 1e-3 < value < 1e3 and abs(row.max()) < MAX_BIAS:
            return row / np.float32(value)
        wide = row.astype(np.float64)
        peak = float(wide.max())
        with np.errstate(over="ignore"):  # far below the maximum, minus infinity is right
            if abs(peak) > _LARGEST * value:  # tiny: only differences matter
                wide -= peak
            wide /= value
            return wide.astype(np.float32)

    return apply


def top_k(count: int) -> Transform:
    """Keep the `count` most probable tokens; ties at the edge stay."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        if count >= len(row):
            return row
        edge = np.partition(row, -count)[-count]
        return _keep(row, row >= edge)

    return apply


def top_p(mass: float) -> Transform:
    """Keep the smallest set of most probable tokens that holds `mass`."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        likely, shares = _likely(row, _negligible(mass, len(row)))
        return _keep_mass(row, likely, shares, -row[likely], mass)

    return apply


def typical(mass: float) -> Transform:
    """Keep tokens whose surprise is nearest the entropy, until they hold `mass`."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        logprobs = log_softmax(row)
        shares = np.exp(logprobs)
        known = logprobs > -np.inf
        entropy = -float(
            np.multiply(shares, logprobs, where=known, out=np.zeros_like(shares)).sum()
        )
        distance = np.abs(logprobs + entropy)
        likely = shares >= _negligible(mass, len(row))
        # All that are as near as the farthest of the likely ones: nothing nearer is left out.
        near = np.flatnonzero(known & (distance <= distance[likely].max()))
        return _keep_mass(row, near, shares[near], distance[near], mass)

    return apply


def min_p(share: float) -> Transform:
    """Keep tokens at least `share` times as probable as the most probable one."""
    offset = np.float32(math.log(share))
    return lambda row, _: _keep(row, row >= row.max() + offset)


def _negligible(mass: float, count: int) -> float:
    """A share below which all tokens together cannot hold what `mass` leaves.

    The rest holds `mass` without them, so they need not be sorted. Half of it, since the sums are
    rounded.
    """
    return (1 - mass) / count / 2


def _likely(row: Row, smallest: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Tokens with at least a share, and their shares in double precision.

    In a large vocabulary only these are computed in double precision, which takes most of the time.
    The others are a small part of the sum, so that their rounding hardly changes it.
    """
    if len(row) <= _SMALL_VOCABULARY:
        shares = softmax(row)
        likely = np.flatnonzero(shares >= smallest)
        return likely, shares[likely]
    peak = row.max()
    weights = np.exp(row - peak)
    total = float(weights.sum(dtype=np.float64))
    likely = np.flatnonzero(weights >= np.float32(smallest * total))
    exact = np.exp(row[likely].astype(np.float64) - float(peak))
    rest = total - float(weights[likely].sum(dtype=np.float64))
    return likely, exact / (float(exact.sum()) + max(0.0, rest))


def _keep_mass(
    row: Row,
    candidates: npt.NDArray[np.intp],
    shares: npt.NDArray[np.float64],
    order: npt.NDArray[np.floating],
    mass: float,
) -> Row:
    """Keep candidates in ascending `order` until their `shares` reach `mass`."""
    places = np.argsort(order, kind="stable")
    ranked = candidates[places]
    cumulative = np.cumsum(shares[places])
    # 1e-9: a cumulative sum that equals the mass but for rounding is enough.
    count = int(np.searchsorted(cumulative, mass - 1e-9)) + 1
    kept = np.full_like(row, -np.inf)
    kept[ranked[:count]] = row[ranked[:count]]
    return kept


def _keep(row: Row, mask: npt.NDArray[np.bool_]) -> Row:
    return np.where(mask, row, np.float32(-np.inf))
