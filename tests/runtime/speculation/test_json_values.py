"""The values of a JSON text that grows, against the parser of the standard library."""

import json
from typing import Any

import numpy as np
import pytest

from edgelm.runtime.speculation.json_values import JsonValues


def flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Keys and texts of all strings, numbers and literals, in order."""
    if isinstance(value, dict):
        return [pair for name, one in value.items() for pair in flat(one, name)]
    if isinstance(value, list):
        return [pair for one in value for pair in flat(one, f"{key}[]")]
    text = json.dumps(value, ensure_ascii=False)
    return [(key, text[1:-1] if isinstance(value, str) else text)]


def some_json(rng: np.random.Generator, depth: int = 0) -> Any:
    kind = rng.integers(0, 8 if depth < 3 else 6)
    if depth == 0 or kind >= 6:
        names = ["a", "zwölf", 'with "quotes"', "back\\slash", ""]
        count = int(rng.integers(0, 5))
        if rng.random() < 0.5:
            return [some_json(rng, depth + 1) for _ in range(count)]
        return {names[number]: some_json(rng, depth + 1) for number in range(count)}
    leaves = [True, None, int(rng.integers(-99, 99)), 1.5e-7, 'say "no", {or} [not]: \\', "Жук"]
    return leaves[kind]


@pytest.mark.parametrize("seed", range(60))
def test_values_are_those_of_the_parser(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = some_json(rng)
    text = json.dumps(value, ensure_ascii=False, indent=[None, 2][seed % 2])
    answer = JsonValues()
    ended = []
    position = 0
    while position < len(text):
        length = int(rng.integers(1, 12))
        ended += answer.push(text[position : position + length])
        position += length
    assert [(one.key, one.text) for one in ended] == [
        (key.replace('"', '\\"') if key.startswith("with") else json.dumps(key)[1:-1], found)
        if key.isascii()
        else (key, found)
        for key, found in flat(value)
    ]
    assert not answer.inside
    for one in answer.values:
        assert text[one.start : one.end] == one.text


def test_text_around_it_is_skipped() -> None:
    answer = JsonValues()
    answer.push('As [1] and {x} say, f(a[0]) is:\n```json\n{"a": 1, "b": {"c": "d')
    assert [(one.key, one.text) for one in answer.values] == [("a", "1"), ("c", "")]
    assert answer.open_value is not None
    answer.push('"}}\n``` That is {all}.')
    assert not answer.inside


def test_where_a_key_or_a_value_may_begin() -> None:
    answer = JsonValues()
    answer.push('{"names"')
    assert answer.expects_colon
    assert answer.next_key is None
    answer.push(":")
    assert answer.next_key == "names"
    answer.push(' ["Ada", ')
    assert answer.next_key == "names[]"
    answer.push('"Bo"], "')
    assert answer.key_start == len(answer.text)
    assert answer.next_key is None


def test_a_copy_is_read_on_alone() -> None:
    answer = JsonValues()
    answer.push('{"a": "b')
    copy = answer.copy()
    copy.push('c", "d": [1')
    assert [one.text for one in copy.values] == ["bc", ""]
    answer.push('x"}')
    assert [one.text for one in answer.values] == ["bx"]
    assert copy.inside
    assert not answer.inside


def test_brackets_without_end_take_memory_of_their_number() -> None:
    answer = JsonValues()
    answer.push("[" * 2000)
    assert answer.inside
    assert sum(len(container.key) for container in answer._stack) < 10_000
