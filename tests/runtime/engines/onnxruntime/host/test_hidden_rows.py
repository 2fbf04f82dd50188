"""Hidden states that wait for a draft head, against a plain list of all of them."""

import numpy as np
import pytest

from edgelm.runtime.engines.onnxruntime.host import hidden_rows as module
from edgelm.runtime.engines.onnxruntime.host.hidden_rows import HiddenRows, Rows


def rows(values: list[int]) -> Rows:
    return np.array([[value, -value] for value in values], np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_the_last_tokens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs append, go back, and leave gaps; a head reads now and then."""
    monkeypatch.setattr(module, "hidden_rows", lambda _: 10)
    monkeypatch.setattr(module, "_FIRST", 3)
    rng = np.random.default_rng(seed)
    held, known = HiddenRows(2), dict[int, int]()
    length, read, value = 0, 0, 0
    for _ in range(200):
        choice = rng.integers(10)
        if choice == 0 and length:
            length = int(rng.integers(length))  # rewound
        elif choice == 1:
            length += int(rng.integers(5))  # a state was copied: nothing is known of it
        count = int(rng.integers(1, 16 if choice == 2 else 4))
        values = list(range(value, value + count))
        held.put(length, rows(values))
        value += count
        if min(known, default=0) > length or length - 1 not in known:
            known = {}
        known = {at: one for at, one in known.items() if at < length}
        known |= dict(zip(range(length, length + count), values, strict=True))
        read, length = min(read, length), length + count
        known = {at: one for at, one in known.items() if at >= length - 10}
        assert (held.start, held.end, held.unchanged) == (min(known), length, read)
        assert held.rows(held.start, length).tolist() == rows([*known.values()]).tolist()
        if choice > 7:
            held.read_until(length)
            read, known = length, {length - 1: known[length - 1]}
            assert held.start == length - 1
    assert held.nbytes <= 2 * 10 * 2 * 4


def test_what_waits_is_bounded() -> None:
    held = HiddenRows(1024)
    for at in range(0, 20_000, 100):
        held.put(at, np.zeros((100, 1024), np.float32))
    assert held.end - held.start == 2048
    assert held.nbytes <= 2 * (8 << 20)


def test_nothing_is_known_of_other_tokens() -> None:
    held = HiddenRows(2)
    held.put(0, rows([1, 2, 3]))
    held.read_until(3)
    held.clear()
    held.put(2, rows([4]))
    assert (held.start, held.end, held.unchanged) == (2, 3, 0)
