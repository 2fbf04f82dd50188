"""Pages and --help use the field's terms and American spelling."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, name

# What a native reader stops at, and what to write instead.
INSTEAD = {
    r"\banew\b": "again",
    r"\bmends?\b": "fix",
    r"\bvouch": "trust",
    r"\bspared\b": "kept",
    r"\bso many\b": "at most N",
    r"\ba hair\b": "slightly",
    r"\bgo(es|ing)? on\b": "resume, continue",
    r"\b(is|are|was) told\b|\btold by\b": "gets; determined by",
    r"\bby turns\b": "in turn, alternating",
    r"\bto the bit\b": "bit for bit",
    r"\bfor ever\b": "forever",
    r"\bonce more\b": "again",
    r"\bas ever\b": "as usual",
    r"\bat hand\b": "this",
    r"\b(it|drafting|not|which) pays?\b|where .{0,20}\bpays\b": "is faster, is worth it",
    r"\b(is|are|be) of use\b": "is useful",
    r"\bparts? (ways|where)\b": "differ",
    r"\bovertake[ns]?\b": "replace",
    r"\bheld to\b": "forced to match",
    r"\b(one|key|scale|keys|scales|factor) an? (line|file|layer|head|channel)\b": "per",
    r"\bas was asked\b": "as requested",
    r"\bis no (bundle|checkpoint|tokenizer)\b": "is not a",
    r"\bevened? out\b": "scaled",
    r"\bdistils?\b": "distill",
    r"\bcolours?\b": "color",
    r"\bbehaviours?\b": "behavior",
    r"\blicences?\b": "license",
    r"\bwhoever\b": "anyone who",
    r"\brefused are\b": "... are not supported",
    r"\b(asked|reached):": "target, measured",
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_conflict_markers(page: Path) -> None:
    assert not re.search(r"^(<{7}|>{7}) ", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_words_are_the_fields(page: Path) -> None:
    text = page.read_text().lower()
    found = {m[0]: new for old, new in INSTEAD.items() if (m := re.search(old, text))}
    assert not found
