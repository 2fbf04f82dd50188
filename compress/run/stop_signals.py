"""Ctrl-C and SIGTERM end a training between two steps, with a checkpoint.

Clusters send SIGTERM some seconds before they take a machine back (SLURM's preemption, Kubernetes,
spot instances).
"""

import logging
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger(__name__)


class StopSignals:
    """Within the context, the first signal is only recorded; a second one takes effect at once.

    Python delivers signals to the main thread; in other threads nothing is changed. A signal that
    the program ignores or handles in C stays as it is.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a generator that another thread closes
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._record:
                signal.signal(number, handler)

    def deliver(self) -> None:
        """Give the signal its usual effect: KeyboardInterrupt, or the end of the process.

        A process that received none, because another one of the run did, ends as with SIGTERM.
        """
        number = self.received or signal.SIGTERM
        handler = self._before.get(number, signal.SIG_DFL)
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
        signal.raise_signal(number)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.received = signal.Signals(number)
            self.deliver()
            return
        self.received = signal.Signals(number)
        _log.warning(
            "%s: the current step ends with a checkpoint; once more ends at once, without it",
            self.received.name,
        )
