"""Ctrl-C and other signals between any two lines leave nothing held that other threads need."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

import edgelm
from edgelm.runtime import LanguageModel, sequences, shared_steps, turns
from edgelm.runtime.engines import engine_session
from edgelm.runtime.generation import steps, stream

PROMPT = "The miller"
# Where Python looks for signals besides loops: at the beginning of every function. Of what holds
# and gives back something, and of the standard library's locks, conditions and `contextmanager`.
_MODULES: tuple[ModuleType, ...] = (
    contextlib,
    engine_session,
    sequences,
    shared_steps,
    steps,
    stream,
    threading,
    turns,
)
_FILES = frozenset(module.__file__ for module in _MODULES)


@pytest.fixture(scope="module", params=[1, 2], ids=["one sequence", "two sequences"])
def model(request: pytest.FixtureRequest, bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=request.param) as lm:
        yield lm


def generate(lm: LanguageModel) -> None:
    lm.generate("abc", max_tokens=2)


def half(lm: LanguageModel) -> None:
    answer = lm.stream("abc", max_tokens=3)
    next(answer)
    answer.close()


def save_and_load(lm: LanguageModel) -> None:
    tokens, state = lm.snapshot([5, 6, 7])
    lm.preload(tokens, state)


class Interrupt:
    """Raises an error, as a signal's handler does, where the n-th function begins.

    Without n, it counts them.
    """

    def __init__(self, error: type[BaseException], number: int = 0) -> None:
        self.error = error
        self.number, self.count, self.where = number, 0, ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in _FILES:
            self.count += 1
            if self.count == self.number:
                self.where = f"{frame.f_code.co_name}, {frame.f_back}"
                raise self.error

    def during(self, body: Callable[[], None]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            body()
        except self.error:  # not by `suppress`, whose end is a function, too
            pass
        finally:
            sys.settrace(before)


# Of a function without a caller, such as a weak reference's, the error is printed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("body", "error"),
    [(generate, KeyboardInterrupt), (half, TimeoutError), (save_and_load, SystemExit)],
)
def test_ctrl_c_where_any_function_begins(
    model: LanguageModel, body: Callable[[LanguageModel], None], error: type[BaseException]
) -> None:
    expected = model.generate(PROMPT, max_tokens=2).text
    body(model)
    counted = Interrupt(error)
    counted.during(lambda: body(model))
    assert counted.count > 20
    for number in range(1, counted.count + 1):
        interrupt = Interrupt(error, number)
        interrupt.during(lambda: body(model))
        texts: list[str] = []
        other = threading.Thread(
            target=lambda texts=texts: texts.append(model.generate(PROMPT, max_tokens=2).text),
            daemon=True,
        )
        other.start()
        other.join(20)
        assert texts == [expected], f"call {number}: {interrupt.where}"


def test_a_model_can_be_closed_again_after_ctrl_c_in_close(bundle: Path) -> None:
    counted = Interrupt(KeyboardInterrupt)
    counted.during(edgelm.load(bundle, threads=1).close)
    assert counted.count > 10
    for number in range(1, counted.count + 1):
        lm = edgelm.load(bundle, threads=1)
        interrupt = Interrupt(KeyboardInterrupt, number)
        interrupt.during(lm.close)
        other = threading.Thread(target=lm.close, daemon=True)
        other.start()
        other.join(20)
        assert not other.is_alive(), f"call {number}: {interrupt.where}"


def test_ctrl_c_where_a_wait_has_given_up_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = threading.Condition(threading.RLock())
    release: Callable[[], Any] = changed._release_save  # type: ignore[attr-defined]

    def interrupted() -> None:
        release()
        raise KeyboardInterrupt

    monkeypatch.setattr(changed, "_release_save", interrupted)
    with pytest.raises(KeyboardInterrupt), changed:  # `with` fails without the lock
        turns.wait_on(changed, 10)
    assert not changed._is_owned()  # type: ignore[attr-defined]


def test_nobody_waits_for_the_next_token_of_an_interrupted_generation(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        shared = lm._sequences.shared_steps
        assert shared is not None

        def interrupt(history: Any, logits: Any) -> Any:
            if len(history) > 4:
                assert shared._expected
                raise KeyboardInterrupt
            return logits

        with pytest.raises(KeyboardInterrupt):
            lm.generate([5, 6], max_tokens=9, logits_processors=[interrupt])
        assert not shared._expected
