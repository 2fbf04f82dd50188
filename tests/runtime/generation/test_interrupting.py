"""Stopping a prefill: between chunks, within one, by `cancel`, Ctrl-C and `close`."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgelm.bundle import read_manifest
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime import interruptible
from edgelm.runtime.engines.onnxruntime.bindings import run_bound
from edgelm.runtime.engines.onnxruntime.interruptible import run_interruptible
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import Cancelled
from tests.export.graphs import cpu_session

LONG = np.random.default_rng(3).integers(4, 320, 60)


@pytest.fixture
def chunked(bundle: Path) -> Iterator[LanguageModel]:
    """The bundle with chunks of 8 tokens."""
    manifest = read_manifest(bundle)
    context = manifest.limits.context
    session = cpu_session(bundle, manifest.graph, capacity=context, chunk=8, threads=1)
    with LanguageModel(bundle, manifest, session) as lm:
        yield lm


def test_cancel_is_asked_between_chunks(chunked: LanguageModel) -> None:
    expected = [chunk.token for chunk in chunked.stream(LONG, max_tokens=5)]
    chunked.session.rewind(0)
    answers = iter([False, False, False, True])
    chunks = list(chunked.stream(LONG, cancel=lambda: next(answers)))
    assert [chunk.finish_reason for chunk in chunks] == ["cancelled"]
    assert chunked.session.length == 24  # what was read stays; the rest was not begun
    assert [chunk.token for chunk in chunked.stream(LONG, max_tokens=5)] == expected


def test_an_event_cancels(chunked: LanguageModel) -> None:
    event = threading.Event()
    event.set()
    assert [p.finish_reason for p in chunked.stream(LONG, cancel=event)] == ["cancelled"]


def test_ctrl_c_between_chunks_leaves_the_model_usable(
    chunked: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chunked.generate("The miller waits until", max_tokens=5).text
    run = OrtEngine.run
    calls = 0

    def interrupted(self: OrtEngine, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return run(self, *args, **options)

    monkeypatch.setattr(OrtEngine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chunked.stream(LONG))
    assert chunked.generate("The miller waits until", max_tokens=5).text == expected


def engine_of(lm: LanguageModel) -> OrtEngine:
    assert isinstance(lm.session, EngineSession)
    assert isinstance(lm.session.engine, OrtEngine)
    return lm.session.engine


def test_a_run_is_stopped_within(lm: LanguageModel) -> None:
    # One chunk of more than a few tokens runs where it can be stopped; `cancel` is true at once.
    engine = engine_of(lm)
    bindings: Any = [SimpleNamespace(io=object())]

    class Slow:
        def run_with_iobinding(self, _: Any, options: Any) -> None:
            end = time.monotonic() + 60
            while not options.terminate and time.monotonic() < end:
                time.sleep(0.01)
            raise RuntimeError("Exiting due to terminate flag being set to true.")

    real, engine._sessions = engine._sessions, [Slow()]
    started = time.monotonic()
    with pytest.raises(Cancelled):
        engine._execute_interruptible(bindings, lambda: True)
    assert time.monotonic() - started < 30
    engine._sessions = real


def test_onnxruntime_obeys_the_flag(lm: LanguageModel) -> None:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.terminate = True
    engine = engine_of(lm)
    with pytest.raises(Exception, match="terminate flag"):
        run_bound(engine._sessions, engine._steps[1].bindings, options)


@pytest.fixture
def handled() -> Iterator[None]:
    """Python's own handler of SIGINT, which a shell's background jobs start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handled")
def test_ctrl_c_stops_native_code_and_waits_for_it() -> None:
    stop, ended = threading.Event(), threading.Event()

    def call() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(60)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(call, stop.set, lambda: False)
    assert ended.is_set()


def test_errors_of_native_code_come_out() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_interruptible(fail, lambda: None, lambda: False)
    assert run_interruptible(lambda: None, lambda: None, lambda: True) in (True, False)


@pytest.mark.parametrize(("count", "logits"), [(5, 0), (0, 1), (5, -1)])
def test_logits_of_nothing_leave_the_cache_alone(
    lm: LanguageModel, count: int, logits: int
) -> None:
    with pytest.raises(BadInput, match="at least one of each"):
        lm.session.advance(LONG[:count], logits=logits)
    assert lm.session.length == 0


def test_runs_one_after_the_other_have_one_thread() -> None:
    # Each new thread would have a part of the heap, which keeps the memory of a run.
    seen: list[threading.Thread] = []
    for _ in range(20):
        run_interruptible(
            lambda: seen.append(threading.current_thread()), lambda: None, lambda: False
        )
    assert len(seen) == 20
    assert len(set(seen)) == 1


def test_runs_at_the_same_time_have_threads_of_their_own() -> None:
    together = threading.Barrier(2, timeout=60)
    seen: list[threading.Thread] = []

    def call() -> None:
        together.wait()
        seen.append(threading.current_thread())

    def run() -> None:
        run_interruptible(call, lambda: None, lambda: False)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 2


_AT_THE_END = """
import sys
from edgelm.runtime.engines.onnxruntime.interruptible import run_interruptible

def run():
    run_interruptible(lambda: print("ended"), lambda: None, lambda: False)

class Last:
    def __del__(self, run=run):
        run()

run()
sys.modules["last"] = Last()  # deleted when no other thread runs any more
"""


def test_a_run_at_the_end_of_the_process() -> None:
    words = [sys.executable, "-c", _AT_THE_END]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.split() == ["ended", "ended"]


class _TakenByOthers(list[Any]):
    """Workers of which others take the last one between a look at them and `pop`."""

    def __bool__(self) -> bool:
        return True

    def pop(self, *_: Any) -> Any:
        raise IndexError


def test_a_worker_that_another_thread_takes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # As without the GIL, where two threads can see the same worker.
    monkeypatch.setattr(interruptible, "_idle", _TakenByOthers())
    seen: list[int] = []
    assert not run_interruptible(lambda: seen.append(1), lambda: None, lambda: False)
    assert seen == [1]


@pytest.mark.parametrize("how", ["fails", "cancelled", "interrupted"])
def test_a_failed_run_holds_no_arrays(how: str) -> None:
    class Arrays:
        pass

    def run() -> weakref.ref[Arrays]:
        arrays, stopped = Arrays(), threading.Event()
        known = weakref.ref(arrays)

        def call(_: Arrays = arrays) -> None:
            if how != "fails":
                assert stopped.wait(60)
            raise ValueError("broken")

        def cancelled() -> bool:
            if how == "interrupted":
                raise KeyboardInterrupt
            return how == "cancelled"

        try:
            assert run_interruptible(call, stopped.set, cancelled)
        except (ValueError, KeyboardInterrupt):
            assert how != "cancelled"
        return known

    gc.collect()
    gc.disable()
    try:
        known = run()
        run_interruptible(lambda: None, lambda: None, lambda: False)  # by the same thread
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_fork_starts_threads_of_its_own() -> None:
    run_interruptible(lambda: None, lambda: None, lambda: False)
    child = os.fork()
    if not child:
        status = 1
        signal.alarm(60)  # ends it, with another status
        try:
            run_interruptible(lambda: None, lambda: None, lambda: False)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
