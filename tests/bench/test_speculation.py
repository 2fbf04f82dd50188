"""`edge-bench --speculation` on a tiny bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.bench.cli import main
from edgelm.bench.speculation import measure
from edgelm.bench.speculation.gain import interval_of
from edgelm.bench.speculation.measure import WorkResult, ends_in_a_loop
from edgelm.bench.speculation.report import _row
from edgelm.bench.speculation.task import Task
from edgelm.bench.speculation.tasks import WORKS
from edgelm.errors import BadInput
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel, Reply
from edgelm.speculation import SpeculationMode
from tests.checkpoints.tiny_chat import save_tiny_chat

# The tiny tokenizer has a token per byte.
SHORT = {
    "chat": (Task("Why?", "Small molecules scatter short waves."),),
    "edit code": (Task("x: total = total + items[0].price", "amount = amount + items[0].price"),),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speculation")
    source = save_tiny_chat(folder / "source", context=256)
    export_model(source, folder / "bundle", precision="int8", gate="off")
    return folder / "bundle"


@pytest.mark.usefixtures("drafts_pay")
def test_the_report(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "WORKS", SHORT)
    monkeypatch.setattr(measure, "_MAX_TOKENS", 20)
    out = str(tmp_path / "report")
    given = [str(bundle), "--speculation", "auto", "-r", "1", "--threads", "1", "--out", out]
    assert main(given) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "report" / "speculation.md").read_text() == table
    record = json.loads((tmp_path / "report" / "speculation.json").read_text())
    rows = [(one["work"], one["answers"]) for one in record["results"]]
    assert rows == [(work, answers) for answers in ("own", "reference") for work in SHORT]
    assert record["command"].startswith("edge-bench ")
    for one in record["results"]:
        assert one["different"] == 0
        assert 0 <= one["accepted"] <= one["drafted"]
        assert len(one["rates_on"]) == len(one["rates_off"]) == one["tasks"]
    assert set(WORKS) == {"chat", "summarize", "edit code", "extract JSON"}
    copied = {one["work"]: one for one in record["results"] if one["answers"] == "reference"}
    assert copied["edit code"]["accepted"] > copied["chat"]["accepted"]


def test_neither_is_always_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, order = measure._answer, list[str]()

    def noted(lm: LanguageModel, mode: SpeculationMode, *rest: Any) -> Reply:
        order.append(mode)
        return answer(lm, mode, *rest)

    monkeypatch.setattr(measure, "WORKS", {"chat": SHORT["chat"]})
    monkeypatch.setattr(measure, "_MAX_TOKENS", 4)
    monkeypatch.setattr(measure, "_answer", noted)
    with edgelm.load(bundle, threads=1) as lm:
        measure.measure_works(lm, "lookup", rounds=2)
    # A warm-up, then two turns; the model's own answer, then the reference.
    assert order == ["lookup", "off", "off", "lookup", "lookup", "off"] * 2


def test_answers_of_a_single_token_have_no_speed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "WORKS", {"chat": SHORT["chat"]})
    monkeypatch.setattr(measure, "_MAX_TOKENS", 1)
    with edgelm.load(bundle, threads=1) as lm:
        own, reference = measure.measure_works(lm, "lookup", rounds=1)
    assert (own.rates_off, own.rates_on, own.gain) == ([], [], None)
    assert _row(own).startswith("| chat | own | – | – | – | 0 of 0 | – |")
    assert reference.gain is not None


def test_a_context_too_short_for_the_tasks_is_said_at_once(bundle: Path) -> None:
    lines: list[str] = []
    with (
        edgelm.load(bundle, threads=1) as lm,
        pytest.raises(BadInput, match=r"the longest task has \d+ tokens, the context holds 256"),
    ):
        measure.measure_works(lm, "lookup", rounds=1, progress=lines.append)
    assert not lines


def test_one_bundle_at_a_time(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), str(bundle), "--speculation", "auto"]) == 2
    assert "one bundle" in capsys.readouterr().err


def test_gain_is_the_mean_over_tasks_of_the_median_of_pairs() -> None:
    on = [[15.0, 16.0, 9.0], [40.0, 50.0, 40.0]]
    result = WorkResult("chat", "own", 2, [[10.0, 10.0, 1.0]] * 2, on, 300, 250, 200, 0, 0)
    assert result.task_gains == pytest.approx([1.6, 5.0])
    assert result.gain == pytest.approx((1.6 * 5.0) ** 0.5)
    assert result.tokens_per_run == 3


def test_the_interval_covers_the_gain_and_shrinks_with_pairs() -> None:
    rng = np.random.default_rng(1)
    covered, widths = 0, {}
    for pairs in (10, 40):
        for _ in range(40):
            low, high = interval_of(rng.normal(0.98, 0.04, (2, pairs)))
            covered += low <= 0.98 <= high
            widths[pairs] = high - low
    assert covered >= 70  # 76 of 80 are expected
    assert widths[40] < 0.7 * widths[10]
    assert interval_of(np.full((3, 5), 1.5)) == pytest.approx((1.5, 1.5))


def test_unknown_work_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--speculation", "auto", "--work", "chat, poems"]) == 2
    assert "'poems' is not a kind of work; expected some of chat" in capsys.readouterr().err


def test_work_without_speculation_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "--work", "chat"]) == 2
    assert "--work selects tasks of --speculation" in capsys.readouterr().err


def test_loops_are_seen() -> None:
    assert ends_in_a_loop([9, 8, *[1, 2, 3] * 20])
    assert not ends_in_a_loop(list(range(60)))
    assert not ends_in_a_loop([1, 2, 3] * 3)
