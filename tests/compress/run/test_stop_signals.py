"""Ctrl-C and SIGTERM during a training: recorded once, then as usual."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.distillation.train import distill
from edgelm.compress.run.stop_signals import StopSignals
from tests.compress.training import SETTINGS, rows, teacher_and_student


def test_the_first_signal_is_recorded_and_delivered_later(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert "checkpoint" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            stop.deliver()
    assert signal.getsignal(signal.SIGINT) is before


REPEAT = "edgelm.compress.run.stop_signals._REPEAT_SECONDS"


def test_a_second_signal_takes_effect_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REPEAT, 0)
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_a_launcher_forwards_is_not_a_second_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(REPEAT, 1e9)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            stop.deliver()


@contextmanager
def handling_sigterm(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """The program has a handler of its own."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_signal_takes_effect_at_once() -> None:
    with handling_sigterm(signal.default_int_handler), StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_handler_that_returns_ends_the_training_once() -> None:
    """An alignment that continued would save its student as complete."""
    seen = list[int]()
    with handling_sigterm(lambda number, _: seen.append(number)), StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert not seen
        with pytest.raises(KeyboardInterrupt):
            stop.deliver()
    assert seen == [signal.SIGTERM]


def test_a_signal_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGINT)


def test_an_error_is_not_replaced_by_the_signal() -> None:
    def fail() -> None:
        with StopSignals():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup in the background
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_training_that_another_program_left_does_not_take_its_handler() -> None:
    """A generator that is dropped closes late, when the handler may be another's."""
    stop = StopSignals().__enter__()
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        current = signal.getsignal(signal.SIGTERM)
        stop.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) is current
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if mine == stop._record else mine)


def test_ctrl_c_in_a_training_keeps_its_steps(tmp_path: Path) -> None:
    teacher, student = teacher_and_student()
    before = signal.getsignal(signal.SIGINT)
    steps = distill(student, teacher, rows(), SETTINGS, tmp_path)
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert (tmp_path / "step-00000003").is_dir()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_the_last_step(tmp_path: Path) -> None:
    """The recipe's next stage, which may take hours, does not begin."""
    teacher, student = teacher_and_student()
    for _ in distill(student, teacher, rows(), SETTINGS, tmp_path):
        pass
    teacher, student = teacher_and_student()

    def interrupt(step: int) -> None:
        assert step == SETTINGS.last_step
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        list(distill(student, teacher, rows(), SETTINGS, tmp_path, after_step=interrupt))
