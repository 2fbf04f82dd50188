"""Quality filters for sampled text.

Sampled text fails in few ways: it is truncated, repetitive, empty, or not text. Repetition is the
share of repeated n-grams (Rae et al. 2021, Gopher, appendix A1.1), counted over words, or over
characters in scripts without spaces.
"""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from edgelm.errors import BadInput

EMPTY = "empty"
TOO_SHORT = "too short"
UNFINISHED = "unfinished"
UNPRINTABLE = "unprintable"
REPETITIVE = "repetitive"
NGRAM = 4
_LONGEST_PERIOD = 64  # characters; n-grams detect longer loops
_SHORTEST_RUN = 24  # characters; shorter ones are numbers, table rules, laughter
_WORDLESS = "぀-ヿ㐀-鿿"  # kana and Han: every character counts as a word
_UNIT = re.compile(rf"[{_WORDLESS}]|[^\W{_WORDLESS}]+")
_UNPRINTABLE = {"Cc", "Cn", "Co", "Cs"}


@dataclass(frozen=True, slots=True)
class Filters:
    """Limits of an accepted text.

    min_characters: shortest text.
    max_repeated: largest share of 4-grams (words) that occurred before in the text.
    max_run: largest share that one piece of up to 64 characters takes by repetition.
    max_unprintable: largest share of control and replacement characters.
    require_end: reject texts that were truncated at the limit of new tokens.
    """

    min_characters: int = 200
    max_repeated: float = 0.2
    max_run: float = 0.2
    max_unprintable: float = 0.01
    require_end: bool = False

    def check(self) -> None:
        """Raise BadInput for values out of range."""
        if self.min_characters < 0:
            raise BadInput(f"min_characters is {self.min_characters}, expected 0 or more")
        for name in ("max_repeated", "max_run", "max_unprintable"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")


FREE_TEXT = Filters()
ANSWERS = Filters(min_characters=1, require_end=True)


def rejection_reason(text: str, filters: Filters, *, ended: bool = True) -> str | None:
    """Why a text is rejected; None if it is accepted.

    Args:
        text: sampled from the teacher.
        filters: the limits.
        ended: whether the teacher ended the text itself.
    """
    if not text.strip():
        return EMPTY
    if filters.require_end and not ended:
        return UNFINISHED
    if len(text.strip()) < filters.min_characters:
        return TOO_SHORT
    if unprintable_share(text) > filters.max_unprintable:
        return UNPRINTABLE
    if repeated_share(text) > filters.max_repeated or run_share(text) > filters.max_run:
        return REPETITIVE
    return None


def words(text: str) -> list[str]:
    """The words of a text in lower case; each Chinese or Japanese character is one.

    >>> words("The cat, the 猫猫")
    ['the', 'cat', 'the', '猫', '猫']
    """
    return _UNIT.findall(text.lower())


def repeated_share(text: str) -> float:
    """The share of n-grams of four words that occurred earlier in the text.

    >>> repeated_share("a b c d a b c d")
    0.2
    """
    parts = words(text)
    ngrams = [tuple(parts[i : i + NGRAM]) for i in range(len(parts) - NGRAM + 1)]
    return round(1 - len(set(ngrams)) / len(ngrams), 6) if ngrams else 0.0


def run_share(text: str) -> float:
    """The share of the text that its longest loop takes: one piece three times or more in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    longest = 0
    for period in range(1, min(_LONGEST_PERIOD, len(codes) // 3) + 1):
        same = _longest_stretch(codes[period:] == codes[:-period])
        if same >= 2 * period:
            longest = max(longest, same + period)
    return longest / len(codes) if longest >= _SHORTEST_RUN else 0.0


def unprintable_share(text: str) -> float:
    """The share of characters that are control codes, unassigned or U+FFFD."""
    bad = sum(
        character == "\ufffd"
        or (character not in "\t\n\r" and unicodedata.category(character) in _UNPRINTABLE)
        for character in text
    )
    return bad / len(text) if text else 0.0


def _longest_stretch(flags: np.ndarray) -> int:
    ends = np.flatnonzero(~np.concatenate(([False], flags, [False])))
    return int(np.diff(ends).max()) - 1
