"""From logits to the next token: small exact transforms, composed.

A transform takes a row of logits [vocab_size] and the tokens so far, and returns logits; what may
not be chosen is minus infinity. Order: bias, penalties, temperature, then the truncations (top-k,
typical, top-p, min-p), each on the distribution that the one before it left, as llama.cpp and
Hugging Face do. Typical sampling: arXiv 2202.00666; min-p: arXiv 2407.01082.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadInput

Row = npt.NDArray[np.float32]
Transform = Callable[[Row, Sequence[int]], Row]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults choose greedily.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `typical_p` 1, `min_p` 0, penalties 1 / 0 / 0
    do nothing. Penalties count the prompt and what was generated (repetition: Hugging Face and
    CTRL, arXiv 1909.05858) or only what was generated (frequency, presence: OpenAI's API).
    `logit_bias` is added to tokens by id. The same `seed` gives the same text.
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
        rules = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "typical_p": (0 < self.typical_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "between -2 and 2"),
        }
        for name, (holds, expected) in rules.items():
            value = getattr(self, name)
            if not holds or not math.isfinite(value):
                raise BadInput(f"{name} is {value!r}, expected a number {expected}")
        if self.seed is not None and self.seed < 0:
            raise BadInput(f"seed is {self.seed}, expected a whole number from 0")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise BadInput(f"logit_bias of token {token} is {bias}, expected a number or -inf")
            if not 0 <= token < vocab_size:
                raise BadInput(f"logit_bias names token {token}, the vocabulary has {vocab_size}")


class Sampler:
    """Chooses tokens; holds the random state of one generation.

    Args:
        sampling: the settings.
        prompt_length: tokens of the history that were given, not generated.
    """

    def __init__(self, sampling: Sampling, *, prompt_length: int = 0) -> None:
        self._greedy = sampling.temperature == 0
        self._random = np.random.default_rng(sampling.seed)
        self._transforms = transforms(sampling, prompt_length)

    def __call__(self, logits: Row, history: Sequence[int]) -> int:
        """Return the next token for logits [vocab_size]."""
        row = self.transformed(logits, history)
        if row.max() == -np.inf:
            raise BadInput("logit_bias forbids every token; leave at least one")
        if self._greedy:
            return int(row.argmax())
        candidates = np.flatnonzero(row > -np.inf)
        cumulative = np.cumsum(softmax(row[candidates]))
        # Against rounding, the last candidate's share ends where the draw's range ends.
        draw = self._random.random() * cumulative[-1]
        return int(candidates[np.searchsorted(cumulative, draw, side="right")])

    def transformed(self, logits: Row, history: Sequence[int]) -> Row:
        """Logits after all transforms."""
        for transform in self._transforms:
            logits = transform(logits, history)
        return logits


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
    weights: npt.NDArray[np.float64] = np.exp(row.astype(np.float64) - float(row.max()))
    weights /= weights.sum()
    return weights


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
        return row

    return apply


def repetition_penalty(penalty: float) -> Transform:
    """Divide positive logits of tokens seen, multiply negative ones."""

    def apply(row: Row, history: Sequence[int]) -> Row:
        seen = np.unique(np.asarray(history, dtype=np.int64))
        row = row.copy()
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        return row

    return apply


def count_penalty(frequency: float, presence: float, prompt_length: int) -> Transform:
    """Subtract for each time, and for any time, a token was generated."""

    def apply(row: Row, history: Sequence[int]) -> Row:
        generated = np.asarray(history[prompt_length:], dtype=np.int64)
        tokens, counts = np.unique(generated, return_counts=True)
        row = row.copy()
        row[tokens] -= (frequency * counts + presence).astype(np.float32)
        return row

    return apply


def temperature(value: float) -> Transform:
    """Flatten above 1, sharpen below."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        scaled = row.astype(np.float64) / value
        if abs(scaled.max()) > np.finfo(np.float32).max:  # tiny: only differences matter
            scaled -= scaled.max()
        with np.errstate(over="ignore"):  # far below the maximum, minus infinity is right
            return scaled.astype(np.float32)

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
        return _keep_mass(row, -row, mass)

    return apply


def typical(mass: float) -> Transform:
    """Keep tokens whose surprise is nearest the entropy, until they hold `mass`."""

    def apply(row: Row, _: Sequence[int]) -> Row:
        log_probabilities = log_softmax(row)
        finite = log_probabilities > -np.inf
        known = log_probabilities[finite]
        entropy = -float((np.exp(known) * known).sum())
        return _keep_mass(row, np.abs(-log_probabilities - entropy), mass)

    return apply


def min_p(share: float) -> Transform:
    """Keep tokens at least `share` times as probable as the most probable one."""
    offset = np.float32(math.log(share))
    return lambda row, _: _keep(row, row >= row.max() + offset)


def _keep_mass(row: Row, order: npt.NDArray[np.floating], mass: float) -> Row:
    """Keep tokens in ascending `order` until their probability reaches `mass`."""
    alive = np.flatnonzero(row > -np.inf)
    ranked = alive[np.argsort(order[alive], kind="stable")]
    cumulative = np.cumsum(softmax(row[ranked]))
    # 1e-9: a cumulative sum that equals the mass but for rounding is enough.
    count = int(np.searchsorted(cumulative, mass - 1e-9)) + 1
    mask = np.zeros(len(row), dtype=bool)
    mask[ranked[:count]] = True
    return _keep(row, mask)


def _keep(row: Row, mask: npt.NDArray[np.bool_]) -> Row:
    return np.where(mask, row, np.float32(-np.inf))
