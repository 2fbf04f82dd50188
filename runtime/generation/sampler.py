"""From logits to the next token: small exact transforms, composed.

A transform takes a row of logits [vocab_size] and the tokens so far, and returns logits; what may
not be chosen is minus infinity. Order: the caller's processors, bias, penalties, temperature, then
the truncations (top-k, typical, top-p, min-p), each on the distribution that the one before it
left, as llama.cpp and Hugging Face do. Typical sampling: arXiv 2202.00666; min-p: arXiv 2407.01082.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.generation.logits_processor import AdvancingProcessor, LogitsProcessor, Row
from edgelm.runtime.generation.token_counts import TokenCounts

_MAX_BIAS = 1e30  # sums and quotients with it stay far within the range of fp32
# Up to here everything is computed in double precision.
_SMALL_VOCABULARY = 8192
_LARGEST = float(np.finfo(np.float32).max)

Transform = Callable[[Row, Sequence[int]], Row]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults choose greedily.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `typical_p` 1 (arXiv 2202.00666), `min_p` 0 and
    penalties of 1, 0 and 0 have no effect. The repetition penalty (CTRL, arXiv 1909.05858) counts
    prompt and answer, the frequency and presence penalties (OpenAI's API) only the answer.
    `logit_bias` is added to the logits of tokens, by id. The same `seed` gives the same text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def check(self, vocab_size: int) -> None:
        """Raise BadInput for a value that means nothing."""
        for name, (low, high, expected) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, np.generic):
                value = value.item()
            if not _is_number(value) or not low <= value <= high:
                raise BadInput(f"{name} is {value!r}, expected a number {expected}")
        if not _is_whole(self.top_k):
            raise BadInput(f"top_k is {self.top_k!r}, expected an integer at least 0")
        if self.seed is not None and not (_is_whole(self.seed) and self.seed >= 0):
            raise BadInput(f"seed is {self.seed!r}, expected an integer from 0, or None")
        if not isinstance(self.logit_bias, Mapping):
            raise BadInput(
                f"logit_bias is {self.logit_bias!r}, expected a dict from token id to number"
            )
        for token, bias in self.logit_bias.items():
            _check_bias(token, bias, vocab_size)


_SMALLEST = math.ulp(0.0)  # above 0
_MAX_FLOAT = float(np.finfo(np.float64).max)  # finite
# name -> minimum, maximum, the same in words
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, _MAX_FLOAT, "at least 0"),
    "top_k": (0, math.inf, "at least 0"),
    "top_p": (_SMALLEST, 1, "above 0 and at most 1"),
    "min_p": (0, 1, "between 0 and 1"),
    "typical_p": (_SMALLEST, 1, "above 0 and at most 1"),
    "repetition_penalty": (_SMALLEST, _MAX_FLOAT, "above 0"),
    "frequency_penalty": (-2, 2, "between -2 and 2"),
    "presence_penalty": (-2, 2, "between -2 and 2"),
}


def _check_bias(token: object, bias: object, vocab_size: int) -> None:
    if not _is_whole(token):
        raise BadInput(f"logit_bias names {token!r}, expected a token id")
    if not 0 <= token < vocab_size:  # type: ignore[operator]
        raise BadInput(f"logit_bias names token {token}, the vocabulary has {vocab_size}")
    if not _is_number(bias) or (abs(bias) > _MAX_BIAS and bias != -math.inf):  # type: ignore[arg-type]
        raise BadInput(
            f"logit_bias of token {token} is {bias!r}, expected a number from -1e30 to 1e30 or -inf"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is a real number; infinities are, NaN is not."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return value == value


class Sampler:
    """Chooses tokens; holds the random state of one generation.

    Args:
        sampling: the settings.
        prompt_length: tokens of the history that were given, not generated.
        processors: the caller's own, before all others.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt_length: int = 0,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._processors = tuple(processors)
        self._advancing = [one for one in processors if isinstance(one, AdvancingProcessor)]
        self._greedy = sampling.temperature == 0
        self._random = np.random.default_rng(sampling.seed)
        self._transforms = transforms(sampling, prompt_length)

    def __call__(self, logits: Row, history: Sequence[int]) -> int:
        """Return the next token for logits [vocab_size].

        Args:
            logits: as the model gave them.
            history: the tokens so far; from call to call it may only grow.

        Raises:
            BadBundle: logits that are not numbers.
            BadInput: settings that forbid every token.
        """
        _check_logits(logits)
        row = self.transformed(self._processed(logits, history), history)
        peak = row.max()
        if not np.isfinite(peak):
            raise BadInput(f"the sampling settings leave no token (highest: {peak}); allow one")
        token = self._choose(row)
        for processor in self._advancing:
            processor.advance(token)
        return token

    def _processed(self, logits: Row, history: Sequence[int]) -> Row:
        if not self._processors:
            return logits
        row = logits.copy()
        for processor in self._processors:
            row = processor(history, row)
            if not isinstance(row, np.ndarray) or row.shape != logits.shape:
                raise BadInput(
                    f"a logits processor returned {type(row).__name__}, expected the logits: an "
                    f"array of {len(logits)} numbers"
                )
        return row

    def _choose(self, row: Row) -> int:
        if self._greedy:
            return int(row.argmax())
        if row.min() > -np.inf:
            return self._draw(row)
        candidates = np.flatnonzero(row > -np.inf)
        return int(candidates[self._draw(row[candidates])])

    def _draw(self, row: Row) -> int:
        cumulative = _weights(row)
        np.cumsum(cumulative, out=cumulative)
        draw = self._random.random() * cumulative[-1]
        # Against rounding, the last candidate's share ends where the draw's range ends.
        return int(np.searchsorted(cumulative[:-1], draw, side="right"))

    def transformed(self, logits: Row, history: Sequence[int]) -> Row:
        """Logits after all transforms."""
        for transform in self._transforms:
            logits = transform(logits, history)
        return logits


def _check_logits(row: Row) -> None:
    peak = row.max()  # NaN if any is
    if not np.isfinite(peak):
        raise BadBundle(
            f"the model's logits are not numbers (their maximum is {peak}): its weights are "
            "damaged, or its 16-bit activations overflow; export it again, with --precision fp32 "
            "if its own logits are sound"
        )


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
    weights = _weights(row)
    weights /= weights.sum()
    return weights


def _weights(row: Row) -> npt.NDArray[np.float64]:
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
        if len(row) > _SMALL_VOCABULARY and 1e-3 < value < 1e3 and abs(row.max()) < _MAX_BIAS:
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
