"""Requests in several processes, and what a result may not depend on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.bench.evaluation.bundle.request_starts import Start
from edgelm.bench.evaluation.bundle.requests import (
    ContinuationRequest,
    answer_requests,
    continuation_requests,
)
from edgelm.bench.evaluation.bundle.workers import BundleWorkers, WorkerSizes
from edgelm.compress.evaluation.backend import Conversation
from edgelm.errors import BadInput, DoesNotFit
from edgelm.runtime.model import LanguageModel

ASKED = [Conversation.of_user(f"Why is {thing} {color}?") for thing in "abcd" for color in "xyz"]
PAIRS = [(tuple(range(20, 20 + length)), (7, 8)) for length in (3, 5, 5, 9, 12, 12, 20, 31)]


@pytest.fixture(scope="module")
def workers(int8_bundle: Path) -> Iterator[BundleWorkers]:
    found = BundleWorkers(int8_bundle, WorkerSizes(processes=2, threads=1, sequences=1))
    yield found
    found.close()


@pytest.fixture(scope="module")
def model(int8_bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(int8_bundle, threads=1) as loaded:
        yield loaded


def test_processes_give_what_one_gives(model: LanguageModel, workers: BundleWorkers) -> None:
    alone, shared = BundleBackend(model), BundleBackend(model, workers=workers)
    seen: list[tuple[int, int]] = []
    found = shared.generate(ASKED, 6, lambda *step: seen.append(step))
    assert found == alone.generate(ASKED, 6)
    assert seen == [(done, len(ASKED)) for done in range(1, len(ASKED) + 1)]
    assert shared.continuations(PAIRS) == alone.continuations(PAIRS)
    rows = [list(range(start, start + 40)) for start in range(8)]
    assert shared.losses(rows) == alone.losses(rows)


def test_an_error_of_a_request_is_raised_here(workers: BundleWorkers) -> None:
    long = [ContinuationRequest(tuple(range(1000)), 2)] * 8
    with pytest.raises(BadInput, match="context"):
        workers.run(long)
    assert workers.run(continuation_requests(PAIRS, 128))  # by new processes


def test_a_process_that_was_ended_is_reported(int8_bundle: Path) -> None:
    lost = BundleWorkers(int8_bundle, WorkerSizes(processes=2, threads=1, sequences=1))
    assert lost.run(continuation_requests(PAIRS, 128))
    os.kill(lost._workers[0]._process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    with pytest.raises(DoesNotFit, match="--threads 1"):
        lost.run(continuation_requests(PAIRS, 128))
    assert not lost._workers


def test_results_do_not_depend_on_what_ran_before(model: LanguageModel) -> None:
    """With an 8-bit cache, tokens of an earlier run are seen rounded, those of the same run not."""
    requests: list[Any] = [
        *continuation_requests([*PAIRS, (PAIRS[-1][0], (9,))], model.context),
        *answer_requests(model, ASKED, 6),
    ]
    assert {type(one.shared) for one in requests if one.shared} == {int, tuple}
    start = Start(model)
    forward = [one.run(start) for one in requests]
    backward = [one.run(start) for one in reversed(requests)]
    assert forward == backward[::-1]
    assert forward == [one.run(Start(model)) for one in requests]
