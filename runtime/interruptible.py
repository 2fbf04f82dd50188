"""A call into native code that can be stopped: by Ctrl-C, or by whoever asked for it.

Python delivers a signal only between two of its own steps, so a call that stays in native code for
seconds would not notice Ctrl-C. The call runs on a thread of its own, while this one waits where a
signal reaches it, and keeps asking whether the result is still wanted.
"""

import threading
from collections.abc import Callable

_POLL_SECONDS = 0.05


def run_interruptible(
    call: Callable[[], None], stop: Callable[[], None], cancelled: Callable[[], bool]
) -> bool:
    """Run `call`; return whether it was cancelled. Returns or raises only once `call` has ended.

    Args:
        call: what to run; it gives the GIL back while it runs.
        stop: makes `call` end early; safe to call at any time, from any thread.
        cancelled: asked every 50 ms, on this thread.

    Raises:
        KeyboardInterrupt: Ctrl-C, after `call` was stopped.
    """
    failure: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as error:
            failure.append(error)

    worker = threading.Thread(target=body, name="edgelm-run", daemon=True)
    worker.start()
    stopped = False
    try:
        while worker.is_alive():
            worker.join(_POLL_SECONDS)
            if worker.is_alive() and not stopped and cancelled():
                stopped = True
                stop()
    except BaseException:
        stop()
        _outlast(worker)
        raise
    if failure and not stopped:
        raise failure[0]
    return stopped


def _outlast(worker: threading.Thread) -> None:
    """Wait for the end: native code writes to our memory until then, whoever presses Ctrl-C."""
    while worker.is_alive():
        try:
            worker.join()
        except KeyboardInterrupt:
            continue
