"""Requests in the threads of one process, each with a sequence of the bundle.

Tokens of all sequences are then one run of the engine, which reads the weights once for all of
them. Prompts are not: a run of many tokens takes one sequence, and is as fast.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from edgelm.bench.evaluation.bundle.request_starts import SharedStates, Start
from edgelm.bench.evaluation.bundle.requests import Request
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.split import split

Done = Callable[[int, bool, Any], None]


class RequestThreads:
    """A thread for each sequence of a loaded bundle. They end with their process.

    Args:
        model: the bundle; nothing else may use it.
        done: called in a thread with a request's number and its result, or false and its error.
    """

    def __init__(self, model: LanguageModel, done: Done) -> None:
        self._done = done
        self._requests: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        parts = split(model)
        states = SharedStates(len(parts)) if len(parts) > 1 else None
        for part in parts:
            threading.Thread(
                target=self._run, args=(Start(part, states),), name="edgelm-request", daemon=True
            ).start()

    def add(self, number: int, request: Request) -> None:
        """Run a request as soon as a thread is free."""
        self._requests.put((number, request))

    def _run(self, start: Start) -> None:
        while True:
            number, request = self._requests.get()
            try:
                result = request.run(start)
            except Exception as error:
                self._done(number, False, error)
            else:
                self._done(number, True, result)
