"""A stand-in for rclpy: a question is a line of standard input, and what is published is printed.

A question that ends in `...` is followed by the next one at the first piece of its answer, others
at the end of theirs.
"""

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from rclpy.executors import ExternalShutdownException

_begun, _asked, _ended = (threading.Semaphore(0) for _ in range(3))
_interrupted = threading.Event()  # the first piece of the next answer waits for another question


class _Publisher:
    def publish(self, message: Any) -> None:
        print(json.dumps(message.data), flush=True)
        if message.data == "":
            _ended.release()
        elif _interrupted.is_set():
            _interrupted.clear()
            _begun.release()
            _asked.acquire()


class _Logger:
    def error(self, text: str) -> None:
        print(f"error: {text}", file=sys.stderr)


class _Node:
    def __init__(self, name: str) -> None:
        self.name = name
        self.callbacks: dict[str, tuple[type, Callable[[Any], None]]] = {}

    def create_publisher(self, kind: type, topic: str, depth: int) -> _Publisher:
        assert (kind.__name__, topic, depth) == ("String", "answer", 10)
        return _Publisher()

    def create_subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], depth: int
    ) -> None:
        assert depth == 10
        self.callbacks[topic] = kind, callback

    def get_logger(self) -> _Logger:
        return _Logger()


def init() -> None:
    pass


def create_node(name: str) -> _Node:
    return _Node(name)


def spin(node: _Node) -> None:
    kind, callback = node.callbacks["question"]
    unanswered, held = 0, False
    for line in sys.stdin:
        text = line.strip()
        unanswered += 1
        if not held and text.endswith("..."):
            _interrupted.set()
        callback(kind(data=text))
        if held:
            _asked.release()
        held = not held and text.endswith("...")
        if held:
            _begun.acquire()
            continue
        while unanswered:
            _ended.acquire()
            unanswered -= 1
    raise ExternalShutdownException


def ok() -> bool:
    return True


def try_shutdown() -> None:
    print("shut down", file=sys.stderr)
