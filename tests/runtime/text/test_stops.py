import pytest

from edgelm.runtime.text.stops import StopStrings

CASES: dict[str, tuple[list[str], list[str], str, str | None]] = {
    "a piece of its own": (["END"], ["one ", "END", " two"], "one ", "END"),
    "over three pieces": (["END"], ["one E", "N", "D two"], "one ", "END"),
    "within a piece": (["END"], ["oneEND two"], "one", "END"),
    "at the beginning": (["END"], ["ENDless"], "", "END"),
    "begun twice": (["END"], ["EN", "EN", "D"], "EN", "END"),
    "overlapping itself": (["aab"], ["aa", "ab"], "a", "aab"),
    "the earlier of two": (["b", "a"], ["xabx"], "x", "a"),
    "the longer began earlier": (["long stop", "op"], ["a long st", "op"], "a ", "long stop"),
    "the shorter of two at one place": (["END", "EN"], ["x END"], "x ", "EN"),
    "line breaks": (["\n\n"], ["a\n", "\nb"], "a", "\n\n"),
    "beyond ascii": (["ü!"], ["gr", "ü", "!"], "gr", "ü!"),
    "never finished": (["END"], ["EN", "E", "nd"], "ENEnd", None),
    "no stops": ([], ["END"], "END", None),
    "an empty stop": ([""], ["abc"], "abc", None),
}


@pytest.mark.parametrize(("stops", "pieces", "shown", "met"), CASES.values(), ids=CASES)
def test_text_before_the_earliest_stop(
    stops: list[str], pieces: list[str], shown: str, met: str | None
) -> None:
    strings = StopStrings(stops)
    text, found = "", None
    for piece in pieces:
        new, found = strings.push(piece)
        text += new
        if found:
            break
    if found is None:
        text += strings.flush()
    assert (text, found) == (shown, met)


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    strings = StopStrings(["</s>"])
    assert strings.push("a < b </") == ("a < b ", None)
    assert strings.push("p>") == ("</p>", None)
    assert strings.flush() == ""


def test_flush_returns_the_held_text_once() -> None:
    strings = StopStrings(["stop"])
    assert strings.push("now sto") == ("now ", None)
    assert strings.flush() == "sto"
    assert strings.flush() == ""


def test_nothing_shown_ever_ends_in_a_part_of_the_stop_that_comes() -> None:
    text, stop = "the first thing and the last", "the last"
    for size in range(1, 8):
        strings = StopStrings([stop])
        shown = ""
        for at in range(0, len(text), size):
            new, _ = strings.push(text[at : at + size])
            shown += new
            assert text.startswith(shown)
            assert len(shown) <= text.index(stop)
        assert shown == text[: text.index(stop)]
