"""Ctrl-C and SIGTERM end a training between two steps, with a checkpoint.

Clusters send SIGTERM some seconds before they take a machine back (SLURM's preemption, Kubernetes,
spot instances).
"""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# SLURM signals all processes of a job, and torch's launcher among them then its workers again.
_REPEAT_SECONDS = 2.0
_log = logging.getLogger(__name__)


class StopSignals:
    """Within the context, the first signal is only recorded; a second one takes effect at once.

    The same signal within two seconds is not a second one. One that is recorded when the context
    ends without an error takes effect there.

    Python delivers signals to the main thread; in other threads nothing is changed. A signal that
    the program ignores or handles in C stays as it is.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a generator that another thread closes
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._record:
                signal.signal(number, handler)
        if self.received is not None and kind in (None, GeneratorExit):
            self.deliver()

    def deliver(self) -> NoReturn:
        """Give the signal its usual effect: KeyboardInterrupt, or the end of the process.

        A process that received none, because another one of the run did, ends as with SIGTERM.

        Raises:
            KeyboardInterrupt: also after a handler of the program that returns, since what follows
                would take the training for complete.
        """
        number, self.received = self.received or signal.SIGTERM, None
        handler = self._before.get(number, signal.SIG_DFL)
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
        signal.raise_signal(number)
        raise KeyboardInterrupt

    def _record(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None:
            if number == self.received and now - self._received_at < _REPEAT_SECONDS:
                return
            self.received = signal.Signals(number)
            self.deliver()
        self.received, self._received_at = signal.Signals(number), now
        _log.warning(
            "%s: the current step ends with a checkpoint; a second one, after %g seconds or later, "
            "ends at once, without it",
            self.received.name,
            _REPEAT_SECONDS,
        )
