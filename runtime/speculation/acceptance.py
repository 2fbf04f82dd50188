"""How often predicted tokens are right, by how many tokens each prediction rests on."""

import threading
from bisect import bisect_right

_EDGES = (3, 5, 9, 17)  # match lengths at which a class of predictions begins
_PRIOR = (0.3, 0.45, 0.65, 0.8, 0.9)  # shares that are right, before any was seen
_WEIGHT = 3.0  # predictions that the prior counts as
_FADING = 0.97  # what an observation counts after the next one


class MatchAcceptance:
    """Shares of right predictions of one generation; recent ones count most."""

    def __init__(self) -> None:
        self._right = [share * _WEIGHT for share in _PRIOR]
        self._seen = [_WEIGHT] * len(_PRIOR)

    def observe(self, matched: int, right: bool) -> None:
        """Count a prediction that rested on `matched` tokens."""
        number = bisect_right(_EDGES, matched)
        self._right[number] = self._right[number] * _FADING + right
        self._seen[number] = self._seen[number] * _FADING + 1

    def share(self, matched: int) -> float:
        """The share of right ones among predictions that rest on `matched` tokens."""
        number = bisect_right(_EDGES, matched)
        return self._right[number] / self._seen[number]

    def expected(self, matched: int, count: int) -> list[float]:
        """Tokens that a run gives with 0 to `count` drafted ones, its own included."""
        total = product = 1.0
        tokens = [total]
        for number in range(count):
            product *= self.share(matched + number)
            total += product
            tokens.append(total)
        return tokens


class DraftAcceptance:
    """The share of a draft model's tokens that are accepted; recent ones count most.

    Methods may be called from several threads.

    Args:
        share: what is assumed before any was seen.
    """

    def __init__(self, share: float = 0.6) -> None:
        self._lock = threading.Lock()
        self._right, self._seen = share * _WEIGHT, _WEIGHT

    @property
    def share(self) -> float:
        """The share of right ones."""
        with self._lock:
            return self._right / self._seen

    def observe(self, right: bool) -> None:
        """Count a drafted token whose predecessors were all accepted."""
        with self._lock:
            self._right = self._right * _FADING + right
            self._seen = self._seen * _FADING + 1

    def expected(self, count: int) -> list[float]:
        """Tokens that a run gives with 0 to `count` drafted ones, its own included."""
        share, tokens = self.share, [1.0]
        for number in range(1, count + 1):
            tokens.append(tokens[-1] + share**number)
        return tokens
