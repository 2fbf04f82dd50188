"""The packages are in plain technical English: no private words in strings or comments."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Packages without any of these words. Add a package once it is clean.
CLEAN_PACKAGES = ["core", "devices", "runtime", "export", "compress", "bench", "examples"]
_UNITS = "nats|rows|tokens|bytes|bits|operations|cycles|joules|J|ms|milliseconds|levels|values"
_THINGS = "token|step|position|weight|second|layer|group|channel|row|millisecond|block|clock|matrix"
# Pattern -> what to write instead.
FORBIDDEN = {
    r"anew": "again, from the start",
    r"mend(s|ed|ing)?": "fix",
    r"so many": "a number; at most N; this many",
    r"(go|goes|going|went) on": "resume, continue",
    r"spared": "kept",
    r"vouch(es|ed)?": "trusted",
    r"told( by| of)?": "determined by, gets, is given",
    r"(is|was|were|are) asked": "requested, required",
    r"is no (bundle|size|tokenizer|record|local|whole|version|share|number|model)": "is not a",
    r"a hair": "slightly",
    r"owed": "remaining, required",
    r"manner": "settings",
    # A judge, a model that compares answers, is the field's word.
    r"judg(ed|ing|ement)": "evaluate, compare",
    r"findings?": "result, check",
    r"evened? out": "equalize, scale",
    r"for people": "as text",
    r"stands? in the way": "is missing, prevents",
    r"rides? along": "is included",
    rf"({_UNITS}) an? ({_THINGS})": "per",
    r"(one|words|keys?|scales?|bytes|factors?) an? (line|file|layer|head|channel|group)": "per",
    r"by turns": "alternating, in turn",
    r"at hand": "this",
    r"(it|drafting|that|not|where \w+) pays?": "is faster, is worth it",
    r"(is|are|be|of no) of use": "is useful",
    r"to the bit": "bit for bit",
    r"for ever(?!y)": "forever",
    r"takes? .{0,30} apart": "parse",
    r"overtake(s|n)?": "replace, end",
    r"once more": "again",
    r"no whole": "no complete",
    r"distil(s|ment)?": "distill",
    r"(behaviour|colour|centre|licence|grey|neighbour)\w*": "American spelling",
    r"(initialis|synchronis|normalis|quantis|optimis|recognis|specialis|serialis)\w+": "-ize",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of the strings and comments of a file."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            names = (tokenize.tok_name[token.type],)
            if names[0] in ("STRING", "COMMENT", "FSTRING_MIDDLE"):
                yield token.start[0], token.string


@pytest.mark.parametrize("package", CLEAN_PACKAGES)
def test_no_private_words(package: str) -> None:
    patterns = [(re.compile(rf"\b({word})\b"), better) for word, better in FORBIDDEN.items()]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r}; write: {better}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts(path)
        for pattern, better in patterns
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "the mend",
        "starting anew",
        "2.1 nats a token",
        "judged by",
        "how it behaviours",
        "went on",
        "keys, one a line",
        "where drafting pays",
        "equal to the bit",
        "what takes an answer apart",
    ],
)
def test_the_table_finds_what_it_is_for(text: str) -> None:
    assert any(re.search(rf"\b({word})\b", text) for word in FORBIDDEN)
