import subprocess
import sys

import numpy as np
import pytest

from edgelm.compress.synthesis.near_duplicates import NearDuplicateIndex
from edgelm.compress.synthesis.text_filters import (
    ANSWERS,
    EMPTY,
    FREE_TEXT,
    REPETITIVE,
    TOO_SHORT,
    UNFINISHED,
    UNPRINTABLE,
    Filters,
    rejection_reason,
    repeated_share,
    run_share,
    unprintable_share,
    words,
)
from edgelm.errors import BadInput

PROSE = (
    "The miller waits until the level outside has dropped below the wheel, then opens the gate. "
    "Water that came in with the tide runs out under the floor, and the stones begin to turn. "
    "Six hours are enough for eleven sacks, if nothing breaks and nobody comes to talk."
)
WORDS = [f"word{i}" for i in range(400)]


@pytest.mark.parametrize(
    ("text", "ended", "reason"),
    [
        (PROSE, True, None),
        (PROSE, False, None),
        (" \n", True, EMPTY),
        ("Six hours.", True, TOO_SHORT),
        (PROSE + "\ufffd" * 9, True, UNPRINTABLE),
        (PROSE + "\x00" * 9, True, UNPRINTABLE),
        ("He said that he would come. " * 9, True, REPETITIVE),
        (PROSE[:200] + "ha" * 100, True, REPETITIVE),
        ("水車小屋の主は待つ。" * 30, True, REPETITIVE),
    ],
)
def test_a_free_text_is_dropped_for_its_fault(text: str, ended: bool, reason: str | None) -> None:
    assert rejection_reason(text, FREE_TEXT, ended=ended) == reason


def test_an_answer_may_be_short_and_must_end() -> None:
    assert rejection_reason("No.", ANSWERS) is None
    assert rejection_reason("10000000", ANSWERS) is None
    assert rejection_reason(PROSE, ANSWERS, ended=False) == UNFINISHED


def test_repeated_share_counts_ngrams_that_occurred_before() -> None:
    # abcd bcda cdab dabc abcd: one of five was there before.
    assert repeated_share("a b c d a b c d") == 0.2
    assert repeated_share("a b c") == 0
    assert repeated_share(PROSE) == 0


def test_run_share_is_that_of_the_longest_loop() -> None:
    assert run_share("x" * 75 + "abcdefghijklmnopqrstuvwyz") == 0.75
    assert run_share("-+" * 30) == 1
    assert run_share("x" * 20) == 0  # too short to tell from a number
    assert run_share(PROSE) == 0


def test_letters_of_any_script_are_printable() -> None:
    assert unprintable_share("Žluťoučký кůň 水車 👩‍👩‍👧 नमस्ते\n\t") == 0
    assert unprintable_share("ab\x07\ufffd") == 0.5


def test_words_are_units_and_so_are_han_characters() -> None:
    assert words("Don't stop: 水車 2024") == ["don", "t", "stop", "水", "車", "2024"]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(min_characters=-1), "min_characters is -1, expected 0 or more"),
        (Filters(max_run=2), "max_run is 2, expected a share from 0 to 1"),
    ],
)
def test_senseless_filters_are_refused(filters: Filters, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        filters.check()


def test_the_same_words_are_the_same_text() -> None:
    seen = NearDuplicateIndex()
    seen.add("The  Cat sat.")
    assert seen.has_exactly("the cat, sat!")
    assert not seen.has_exactly("the cat sits")
    seen.add("?!")
    assert not seen.has_exactly("!!")


def test_a_text_with_a_few_words_changed_is_a_near_duplicate() -> None:
    seen = NearDuplicateIndex(0.8)
    seen.add(" ".join(WORDS))
    changed = [*WORDS]
    changed[100] = changed[200] = changed[300] = "other"  # Jaccard index 381/411 = 0.93
    assert seen.has_nearly(" ".join(changed))
    assert not seen.has_exactly(" ".join(changed))
    assert not seen.has_nearly(" ".join(WORDS[:200] + [f"new{i}" for i in range(200)]))


def test_half_similar_texts_are_not_duplicates_and_are_rarely_compared() -> None:
    # 396 shingles each, of which 264 in common: index 264 / 528 = 0.5. 28 % of such share a band.
    assert _share_found(0.65) == 0
    assert 0.1 < _share_found(0.35) < 0.6


def _share_found(threshold: float) -> float:
    found = []
    for trial in range(60):
        words = [f"{trial}w{i}" for i in range(400)]
        seen = NearDuplicateIndex(threshold)
        seen.add(" ".join(words))
        found.append(seen.has_nearly(" ".join(words[132:] + [f"{trial}n{i}" for i in range(132)])))
    return float(np.mean(found))


def test_signatures_are_the_same_in_every_process() -> None:
    code = (
        "from edgelm.compress.synthesis.near_duplicates import _signature;"
        "print(int(_signature('the cat sat on the mat today').sum(dtype='u8')))"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    }
    assert len(sums) == 1
