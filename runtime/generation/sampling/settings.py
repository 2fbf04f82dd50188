"""How the next token is chosen: the settings, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np

from edgelm.errors import BadInput

MAX_BIAS = 1e30  # sums and quotients with it stay far within the range of fp32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults choose greedily.

    `temperature` 0 is greedy, and `top_p` 0 keeps the most probable token alone, as llama.cpp and
    transformers do and OpenAI's API allows (vLLM refuses it). `top_k` 0, `top_p` 1, `typical_p` 1
    (arXiv 2202.00666), `min_p` 0 and penalties of 1, 0 and 0 have no effect. The repetition penalty
    (CTRL, arXiv 1909.05858) counts prompt and answer, the frequency and presence penalties
    (OpenAI's API) only the answer. `logit_bias` is added to the logits of tokens, by id. The same
    `seed` gives the same text from the same logits.
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
    "top_p": (0, 1, "between 0 and 1"),
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
    if not _is_number(bias) or (abs(bias) > MAX_BIAS and bias != -math.inf):  # type: ignore[arg-type]
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
