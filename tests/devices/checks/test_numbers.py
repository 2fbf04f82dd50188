"""Versions as numbers."""

import pytest

from edgelm.devices.checks.numbers import numbers


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.16.1.11", (10, 16, 1, 11)),
        ("2.13.0+cu130", (2, 13, 0)),
        ("1.33.0rc1", (1, 33, 0)),
        ("39.2", (39, 2)),
        (" 580 ", (580,)),
    ],
)
def test_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


@pytest.mark.parametrize("text", ["", "unknown", "R36.4"])
def test_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version number"):
        numbers(text)
