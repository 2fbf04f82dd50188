"""What a program can say of an answer: it ends, does not loop, stays in script, closes tags."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from edgelm.bundle.records.behavior import TRAITS, Behavior, compare_trait
from edgelm.export.gate import prompts as asked
from edgelm.export.gate.answers import SEED, SampledAnswer

_LONGEST_PERIOD = 12  # tokens
_REPEATS, _MIN_REPEATED = 3, 8
_FOREIGN = 0.1  # share of letters in a script that the source's answers do not use
_TAG = re.compile(r"<(/?)([a-z_]{2,20})>")
_FENCE = "```"
Decode = Callable[[Sequence[int]], str]


def compare_behavior(
    source: Sequence[SampledAnswer],
    bundle: Sequence[SampledAnswer],
    decode: Decode,
    temperature: float,
) -> Behavior:
    """Compare answers to the same prompts, trait by trait."""
    texts = [[decode(one.tokens) for one in answers] for answers in (source, bundle)]
    scripts = common_scripts(texts[0])
    found = [
        [_traits(one, text, scripts) for one, text in zip(answers, parts, strict=True)]
        for answers, parts in zip((source, bundle), texts, strict=True)
    ]
    traits = tuple(
        compare_trait(trait, [one[at] for one in found[0]], [one[at] for one in found[1]])
        for at, trait in enumerate(TRAITS)
    )
    return Behavior(len(source), asked.MAX_TOKENS, temperature, SEED, traits)


def loops(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are one short part three times in a row."""
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(_REPEATS * period, _MIN_REPEATED)
        tail = tokens[-length:]
        if len(tail) == length and all(
            tail[at] == tail[at - period] for at in range(period, length)
        ):
            return True
    return False


def common_scripts(texts: Sequence[str]) -> frozenset[str]:
    """The scripts of at least a twentieth of the letters."""
    counts = Counter(_script(letter) for text in texts for letter in text if letter.isalpha())
    total = sum(counts.values())
    return frozenset(name for name, count in counts.items() if count * 20 >= total)


def in_script(text: str, scripts: frozenset[str]) -> bool:
    """Whether an answer is in the scripts of the source's answers, without broken characters."""
    letters = [letter for letter in text if letter.isalpha()]
    foreign = sum(_script(letter) not in scripts for letter in letters)
    return "\ufffd" not in text[:-1] and foreign <= _FOREIGN * max(1, len(letters))


def closes_tags(text: str) -> bool:
    """Whether every tag and code fence of a whole answer is closed, in order."""
    opened: list[str] = []
    for slash, name in _TAG.findall(text):
        if not slash:
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return not opened and text.count(_FENCE) % 2 == 0


def _traits(answer: SampledAnswer, text: str, scripts: frozenset[str]) -> tuple[bool, ...]:
    # What was cut may close later.
    closed = not answer.ended or closes_tags(text)
    return answer.ended, not loops(answer.tokens), in_script(text, scripts), closed


def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK..."""
    return unicodedata.name(letter, "?").partition(" ")[0]
