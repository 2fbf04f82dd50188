"""The times of runs, and what acceptance they ask of a draft."""

import sys
from pathlib import Path

import pytest

from bench.studies.speculation import verification_cost
from bench.studies.speculation.verification_cost import needed_acceptance
from edgelm.speculation import expected_tokens


def test_the_needed_acceptance_gives_the_gain() -> None:
    share = needed_acceptance(2.0, 3)
    assert share is not None
    assert expected_tokens(share, 3) / 2.0 == pytest.approx(1.3, abs=0.005)
    assert needed_acceptance(4.0, 3) is None, "four tokens at the most"


def test_costs_name_every_number_of_tokens_and_of_drafts(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification_cost, "_ROUNDS", 1)
    words = ["study", str(bundle), "--depths", "8", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--drafts", str(bundle / "draft")])
    verification_cost.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    first = [row[1].strip() for row in rows]
    assert first[0] == "tokens"
    assert first[2:10] == ["1", "2", "3", "4", "5", "7", "8", "16"]
    assert float(rows[2][3]) == 1, "times one"
    assert first[10] == "drafted"
    assert first[12:] == ["1", "2", "3", "4", "6"]
    runs = [float(row[2]) for row in rows[12:]]
    tokens = [float(row[3]) for row in rows[12:]]
    assert tokens == pytest.approx([1.3 * cost for cost in runs], abs=0.02)
