"""A quick look at speed: what is run before what counts."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelm.bench.gpu_steps import main, measure_steps
from tests.bench.fake_worker import VOCAB, FakeEngine


def test_everything_has_run_once_before_it_counts(calls: Callable[[], list[str]]) -> None:
    engine = FakeEngine()
    engine.load({"path": "good", "context": 64, "threads": 1})
    [one] = measure_steps(engine, [5], VOCAB)
    assert calls()[1:4] == ["good prefill 5 after 0", "good prefill 5 after 0", "good step 6"]
    assert calls()[-1] == f"good step {5 + 56}"
    assert one.depth == 5
    assert min(one.prompt_ms, one.step_ms) >= 0


def test_a_row_for_every_depth(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_steps", str(bundle), "--depths", "4", "8"])
    main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| engine | depth | prompt ms | step ms | tokens/s |"
    assert [row.split(" | ")[:2] for row in rows[2:]] == [
        ["| tiny-fp32", "4"],
        ["| tiny-fp32", "8"],
    ]
