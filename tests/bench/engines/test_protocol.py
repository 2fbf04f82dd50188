"""The worker's side: what each verb asks of the engine and answers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.bench.engines.protocol import _answer, synthetic
from tests.bench.fake_worker import VOCAB, FakeEngine

OPTIONS = {"path": "good", "context": 64, "threads": 2}


@pytest.fixture
def engine(calls: Callable[[], list[str]]) -> FakeEngine:
    engine = FakeEngine()
    ask(engine, "load", options=OPTIONS)
    return engine


def ask(engine: FakeEngine, verb: str, **arguments: Any) -> dict[str, Any]:
    return _answer(engine, {"verb": verb, **arguments})


def test_load_adds_the_memory_of_the_process() -> None:
    reply = ask(FakeEngine(), "load", options=OPTIONS)
    assert reply["context"] == 64
    assert reply["options"] == "threads 2"
    assert 0 < reply["rss_before"] <= reply["rss_after"] + 2**20


def test_prefill_runs_the_prompt_after_the_depth(
    engine: FakeEngine, calls: Callable[[], list[str]]
) -> None:
    reply = ask(engine, "prefill", tokens=8, depth=5, vocab_size=VOCAB)
    assert calls()[1:] == ["good prefill 5 after 0", "good prefill 8 after 5"]
    assert set(reply) == {"ms"}
    assert reply["ms"] >= 0


def test_prefill_without_depth_starts_empty(
    engine: FakeEngine, calls: Callable[[], list[str]]
) -> None:
    ask(engine, "prefill", tokens=8, depth=0, vocab_size=VOCAB)
    ask(engine, "prefill", tokens=8, depth=0, vocab_size=VOCAB)
    assert calls()[1:] == ["good prefill 8 after 0"] * 2


@pytest.mark.parametrize(("depth", "filled"), [(0, 1), (1, 1), (6, 6)])
def test_decode_steps_after_the_depth(
    engine: FakeEngine, calls: Callable[[], list[str]], depth: int, filled: int
) -> None:
    reply = ask(engine, "decode", tokens=3, depth=depth, vocab_size=VOCAB)
    steps = [f"good step {filled + n}" for n in (1, 2, 3)]
    assert calls()[1:] == [f"good prefill {filled} after 0", *steps]
    assert len(reply["steps_ms"]) == 3
    assert min(reply["steps_ms"]) >= 0
    assert reply["ttft_ms"] > 0


def test_logits_come_as_a_file(engine: FakeEngine, tmp_path: Path) -> None:
    reply = ask(engine, "logits", tokens=[1, 2, 3], path=str(tmp_path / "rows.npy"))
    assert reply == {"rows": 3}
    rows = np.load(tmp_path / "rows.npy")
    assert (rows.shape, rows.dtype) == ((3, VOCAB), np.float32)


def test_memory_is_this_process_s(engine: FakeEngine) -> None:
    reply = ask(engine, "memory")
    assert reply["peak_rss_bytes"] >= reply["rss_bytes"] > 10 * 2**20
    assert reply["rss_bytes"] < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_tokens_are_the_same_for_every_engine() -> None:
    tokens = synthetic(1000, 5000, seed=1)
    assert tokens.tolist() == synthetic(1000, 5000, seed=1).tolist()
    assert tokens.tolist() != synthetic(1000, 5000, seed=2).tolist()
    assert tokens.min() >= 100  # ids that are often special
    assert tokens.max() < 5000
    assert synthetic(100, 20, seed=0).min() >= 10
