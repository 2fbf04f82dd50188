"""Threads worth using: affinity, SMT siblings, and a control group's quota."""

import os
from pathlib import Path

import pytest

from edgelm.devices.detection.threads import physical_cores


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("smt", "quota", "cores"),
    [
        ("0", "max 100000", 8),
        ("1", "max 100000", 4),
        ("0", "200000 100000", 2),
        ("0", "250000 100000", 2),
        ("0", "50000 100000", 1),
        ("0", "nonsense", 8),
        ("0", "1 0", 8),
        ("1", "1600000 100000", 4),
    ],
    ids=["all", "siblings", "quota", "fraction", "half-a-core", "garbage", "no-period", "wide"],
)
def test_cores(tmp_path: Path, smt: str, quota: str, cores: int) -> None:
    (tmp_path / "smt").write_text(f"{smt}\n")
    (tmp_path / "max").write_text(f"{quota}\n")
    assert physical_cores(tmp_path / "smt", tmp_path / "max") == cores


def test_neither_file(tmp_path: Path) -> None:
    assert physical_cores(tmp_path / "smt", tmp_path / "max") == 8
