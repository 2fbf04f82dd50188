"""A quick look at speed: what is run before what counts, and what counts."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.studies.speed.gpu_steps import Steps, main, measure_steps
from tests.bench.fake_worker import VOCAB, FakeEngine


def test_what_ran_before_does_not_count(calls: Callable[[], list[str]]) -> None:
    engine = FakeEngine()
    engine.load({"path": "good", "context": 64, "threads": 1})
    now = iter(
        [0.0, 9.0, 9.0, 9.5]  # the first prompt takes nine seconds, the second half a one
        + [float(t) for _ in range(8) for t in (0, 7)]  # seven a step at first
        + [t for step in range(48) for t in (0.0, 1.0 if step % 2 else 2.0)]
    )
    assert list(measure_steps(engine, [5], VOCAB, lambda: next(now))) == [Steps(5, 500.0, 1500.0)]
    assert calls()[1:4] == ["good prefill 5 after 0", "good prefill 5 after 0", "good step 6"]
    assert calls()[-1] == f"good step {5 + 56}"


def test_a_row_for_every_depth(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_steps", str(bundle), "--depths", "4", "8"])
    main()
    title, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("; medians of 48 steps, context 64")
    assert head == "| engine | version | depth | prompt ms | step ms | tokens/s |"
    cells = [row.split(" | ") for row in rows]
    assert [(one[0], one[2]) for one in cells] == [("| tiny-fp32", "4"), ("| tiny-fp32", "8")]
