"""A process that is forked from one with a model: it cannot run the engine, and says so."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime import LanguageModel

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def in_child(body: Callable[[], object]) -> str:
    """What a function returns or raises in a forked child that ends as a program does."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = f"{body()}"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    end = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child does not end")
        time.sleep(0.01)
    with os.fdopen(out, "rb") as file:
        return file.read().decode()


def used(lm: LanguageModel) -> str:
    return lm.generate("a", max_tokens=1).text


def test_a_child_has_to_load_it_again(bundle: Path) -> None:
    with edgelm.load(bundle, threads=2, sequences=2) as lm:
        expected = used(lm)
        assert in_child(lambda: used(lm)).startswith("BadInput: this model is closed in this proc")
        assert in_child(lm.close) == "None"  # which would wait for the engine's threads
        assert in_child(lambda: used(edgelm.load(bundle, threads=1))) == expected
        assert used(lm) == expected


def test_a_stream_may_be_closed_in_a_child(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        stream = lm.stream("a")
        next(stream)
        steps = lm._sequences.shared_steps
        assert steps is not None
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with steps._mutex:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(60)
        try:
            assert in_child(stream.close) == "None"
        finally:
            done.set()
            thread.join(60)


def test_while_another_thread_generates(bundle: Path) -> None:
    stop, begun = threading.Event(), threading.Event()

    def asked() -> bool:
        begun.set()
        return False

    def work(lm: LanguageModel) -> None:
        while not stop.is_set():
            lm.generate("a", max_tokens=20, cancel=asked)

    with edgelm.load(bundle, threads=1) as lm:
        thread = threading.Thread(target=work, args=(lm,))
        thread.start()
        assert begun.wait(60)
        try:
            for _ in range(5):
                assert "forked after it was loaded" in in_child(lambda: used(lm))
        finally:
            stop.set()
            thread.join(60)
