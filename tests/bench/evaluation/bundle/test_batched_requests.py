"""Answers that are written together are those that are written one by one."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.bench.evaluation.bundle import workers
from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.bench.evaluation.bundle.batch_equality import exact_batch
from edgelm.bench.evaluation.bundle.request_starts import SharedStates, Start
from edgelm.bench.evaluation.bundle.request_threads import RequestThreads
from edgelm.bench.evaluation.bundle.requests import AnswerRequest, Request, answer_requests
from edgelm.bench.evaluation.bundle.workers import BundleWorkers, WorkerSizes, worker_sizes
from edgelm.bundle import read_manifest
from edgelm.compress.evaluation.backend import Answer, Conversation
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.errors import BadInput
from edgelm.runtime import shared_steps
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Logits
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.split import split

SYSTEM = {"role": "system", "content": "Garnets and millers."}
ASKED = [
    Conversation((SYSTEM, {"role": "user", "content": f"Why is {thing} {color}?"}))
    for thing in "abc"
    for color in ("blue", "x")
] + [Conversation.of_user(f"How {word}?") for word in ("many", "", "long is it", "a", "b c d")]
Sizes = Counter[int]


@pytest.fixture(scope="module")
def alone(int8_bundle: Path) -> list[Answer]:
    """The answers, written one by one."""
    with edgelm.load(int8_bundle, threads=1) as model:
        return BundleBackend(model).generate(ASKED, 12)


@pytest.fixture
def four(int8_bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(int8_bundle, threads=1, sequences=4) as model:
        yield model


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """How many runs there are of each number of sequences; every run waits for all others."""
    monkeypatch.setattr(shared_steps, "_PATIENCE", 1e6)
    monkeypatch.setattr(shared_steps, "_MAX_PATIENCE", 5.0)
    counted: Sizes = Counter()
    real = EngineSession.advance_each

    def advance_each(sessions: Sequence[EngineSession], tokens: Sequence[int]) -> list[Logits]:
        counted[len(sessions)] += 1
        return real(sessions, tokens)

    monkeypatch.setattr(EngineSession, "advance_each", advance_each)
    return counted


def run(model: LanguageModel, requests: Sequence[Request], order: Sequence[int]) -> list[Any]:
    """Results of requests that are given to threads in this order."""
    found: SimpleQueue[tuple[int, bool, Any]] = SimpleQueue()
    threads = RequestThreads(model, lambda *result: found.put(result))
    for number in order:
        threads.add(number, requests[number])
    results = [found.get(timeout=60) for _ in order]
    assert all(ok for _, ok, _ in results), results
    return [value for _, _, value in sorted(results, key=lambda one: one[0])]


def test_answers_depend_neither_on_company_nor_on_order(
    four: LanguageModel, alone: list[Answer], sizes: Sizes
) -> None:
    requests = answer_requests(four, ASKED, 12)
    assert len({one.shared for one in requests}) == 2
    for seed in range(3):
        order = random.Random(seed).sample(range(len(requests)), len(requests))
        assert run(four, requests, order) == alone
    assert sizes[4] > 5, sizes  # about 55; on a busy machine, threads come too late


def test_processes_write_several_answers_at_a_time(
    int8_bundle: Path, four: LanguageModel, alone: list[Answer]
) -> None:
    workers = BundleWorkers(int8_bundle, WorkerSizes(processes=1, threads=1, sequences=4))
    requests = answer_requests(four, ASKED, 12)
    try:
        assert workers.wants(requests)
        assert workers.run(requests) == alone
        bad = AnswerRequest(Conversation.of_user("a" * 4000), 4)
        with pytest.raises(BadInput, match="context"):
            workers.run([*requests, bad])
        assert workers.run(requests) == alone  # by a new process
    finally:
        workers.close()


def test_a_shared_beginning_is_computed_once_for_all_threads(
    four: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[int] = []
    real = EngineSession.advance

    def advance(session: EngineSession, tokens: Any, *, logits: int = 1) -> Logits:
        prompts.append(len(tokens))
        return real(session, tokens, logits=logits)

    monkeypatch.setattr(EngineSession, "advance", advance)
    shared = tuple(range(40, 71))
    states = SharedStates(2)
    starts = [Start(part, states) for part in split(four)]
    for start in starts:
        session = start.begin(shared)
        assert session.tokens == list(shared)
    assert prompts == [31]
    rows = [start.model.session.advance(np.array([7])).copy() for start in starts]
    assert all((row == rows[0]).all() for row in rows)
    for other in ((1, 2), (3, 4), shared):  # the first of three states is gone, and computed again
        starts[0].begin(other)
    assert prompts[1:].count(31) == 1


def test_parts_of_a_model_take_nothing_from_each_other(four: LanguageModel) -> None:
    prompt = list(range(20, 60))
    first, second, *_ = split(four)
    assert first.generate(prompt, max_tokens=2, temperature=0).usage.cached_tokens == 0
    assert second.generate(prompt, max_tokens=2, temperature=0).usage.cached_tokens == 0
    assert second.generate(prompt, max_tokens=2, temperature=0).usage.cached_tokens == 39
    four.close()
    with pytest.raises(BadInput, match="closed"):
        first.generate(prompt)


def test_only_equal_bits_are_batched(
    int8_bundle: Path, four: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgelm.load(int8_bundle, threads=1) as model:
        assert exact_batch(model.session, 4) == 4
        assert model.session.length == 0
        assert isinstance(model.session, EngineSession)
        monkeypatch.setattr(model.session.engine, "batch", None)
        assert exact_batch(model.session, 4) == 1
        monkeypatch.undo()
        real = EngineSession.advance_each

        def rounded(sessions: Sequence[EngineSession], tokens: Sequence[int]) -> list[Logits]:
            rows = real(sessions, tokens)
            if len(rows) == 3:
                rows[2][0, 5] = np.nextafter(rows[2][0, 5], np.float32(9))
            return rows

        monkeypatch.setattr(EngineSession, "advance_each", rounded)
        assert exact_batch(model.session, 2) == 2
        assert exact_batch(model.session, 4) == 1


def test_processes_come_before_sequences(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(int8_bundle)

    def free(count: float) -> None:
        monkeypatch.setattr(workers, "available_bytes", lambda: int(count))

    free(1 << 40)
    assert worker_sizes(manifest, 4, 4) == (4, 1, 4)
    assert worker_sizes(manifest, 1, 4) == (1, 1, 4)
    assert worker_sizes(manifest, 1, 1) is None
    assert worker_sizes(manifest, 999, 1) == (16, 62, 1)
    one = loaded_bytes(manifest, manifest.limits.context)
    free(2.01 * 2 * one)
    sizes = worker_sizes(manifest, 2, 64)
    assert sizes is not None
    assert sizes.processes == 2
    assert 1 < sizes.sequences < 64
    free(one)
    assert worker_sizes(manifest, 4, 4) is None
