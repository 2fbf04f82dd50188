"""Patterns of modules: PEFT's order, and no pattern that takes long."""

import re

import pytest

from edgelm.checkpoint.adapter import patterns
from edgelm.checkpoint.adapter.patterns import ModulePatterns
from edgelm.errors import BadCheckpoint

MODULE = "model.layers.11.mlp.down_proj"


def wrong(pattern: str, expected: str) -> BadCheckpoint:
    return BadCheckpoint(f"{pattern}: expected {expected}")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 8),
        ({"down_proj": 2}, 2),
        ({"proj": 2}, 8),
        ({"mlp.down_proj": 2, "down_proj": 4}, 2),
        ({r".*\.layers\.[0-9]+\.mlp\..*_proj": 2}, 2),
        ({"(q|k|v|o|gate|up|down)_proj": 2}, 2),
        ({r"layers\.1\.mlp\.down_proj": 2, r"(?:layers\.11\.)?mlp\.down_proj": 4}, 4),
        ({"^model.layers.11.mlp.down_proj": 2}, 2),
        ({rf"layers\.({'|'.join(map(str, range(32)))})\.mlp\.down_proj": 2}, 2),
        ({r".*\.layers\.\d+\..*\.(gate|up|down)_proj": 2}, 2),
        ({r".*layers\.(1|3|5|7|9|11)\..*(q_proj|k_proj|v_proj|down_proj)": 2}, 2),
        ({"^layers.11.mlp.down_proj": 2}, 8),
    ],
)
def test_values_are_those_of_pefts_rule(values: dict[str, float], expected: float) -> None:
    assert ModulePatterns(values, wrong).value(MODULE, 8) == expected
    rule = (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", MODULE))
    assert next(rule, 8) == expected


def test_a_module_with_a_long_name() -> None:
    found = ModulePatterns({".*a.*b": 2}, wrong)
    with pytest.raises(BadCheckpoint, match="modules of at most 100 characters"):
        found.value("a" * 101, 8)


def test_many_slow_patterns_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MAX_SECONDS", 0.0)
    found = ModulePatterns({f".*.*x{n}": 2 for n in range(100)}, wrong)
    with pytest.raises(BadCheckpoint, match="patterns that are matched within seconds"):
        found.value("a" * 100, 8)
