"""Which texts of a teacher are no good to learn from.

Sampled text fails in few ways: it breaks off, it falls into a loop, it is empty or it is bytes
that are no text. Repeated n-grams are the measure of Rae et al. 2021 (Gopher, appendix A1.1),
counted here over words (over characters where a script writes no spaces).
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
_LONGEST_PERIOD = 64  # characters; longer loops show in the n-grams
_SHORTEST_RUN = 24  # characters; shorter ones are numbers, rules of a table, laughter
_WORDLESS = "぀-ヿ㐀-鿿"  # kana and Han: every character counts as a word
_UNIT = re.compile(rf"[{_WORDLESS}]|[^\W{_WORDLESS}]+")
_UNPRINTABLE = {"Cc", "Cn", "Co", "Cs"}


@dataclass(frozen=True, slots=True)
class Filters:
    """What a text must be to be kept.

    min_characters: shortest text.
    max_repeated: largest share of its n-grams of four words that occurred before in it.
    max_run: largest share of it that is one piece of up to 64 characters over and over.
    max_unprintable: largest share of control and replacement characters.
    require_end: drop texts that were cut off at the limit of new tokens.
    """

    min_characters: int = 200
    max_repeated: float = 0.2
    max_run: float = 0.2
    max_unprintable: float = 0.01
    require_end: bool = False

    def check(self) -> None:
        """Raise BadInput for numbers that make no sense."""
        if self.min_characters < 0:
            raise BadInput(f"min_characters is {self.min_characters}, expected 0 or more")
        for name in ("max_repeated", "max_run", "max_unprintable"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")


FREE_TEXT = Filters()
ANSWERS = Filters(min_characters=1, require_end=True)


def fault(text: str, filters: Filters, *, ended: bool = True) -> str | None:
    """Why a text is dropped, or None if it is good.

    Args:
        text: what the teacher wrote.
        filters: what is asked of it.
        ended: whether the teacher came to an end by itself.
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


def units(text: str) -> list[str]:
    """The words of a text in lower case; every character of Chinese and Japanese is one.

    >>> units("The cat, the 猫猫")
    ['the', 'cat', 'the', '猫', '猫']
    """
    return _UNIT.findall(text.lower())


def repeated_share(text: str) -> float:
    """The share of n-grams of four words that occurred earlier in the text.

    >>> repeated_share("a b c d a b c d")
    0.2
    """
    words = units(text)
    ngrams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
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
