"""How much a template may do: a template is a program that somebody else wrote.

Three things are counted while it renders: steps (statements, calls, comparisons), the size of each
value, and what was made in all. Sizes are in bytes and count a value as often as it is referred to,
since that is what printing or comparing it costs.
"""

import sys
import time
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

_MAX_STEPS = 1_000_000
_MAX_SECONDS = 1.0  # of this thread's computing: a busy machine refuses no conversation
# Of one value, and of all that were made: as many times what was given, and this much more.
_VALUE_FACTOR, _VALUE_BYTES, _MAX_VALUE_BYTES = 8, 8_000_000, 64_000_000
_TOTAL_FACTOR, _TOTAL_BYTES, _MAX_TOTAL_BYTES = 32, 64_000_000, 256_000_000
_ITEM_BYTES = 64


class OutOfBudget(Exception):
    """A template that does more than any conversation needs."""


class Budget:
    """What one rendering may still do.

    Args:
        given: bytes of what the template is given.
    """

    def __init__(self, given: int) -> None:
        self.max_value = min(_VALUE_BYTES + _VALUE_FACTOR * given, _MAX_VALUE_BYTES)
        self._left = min(_TOTAL_BYTES + _TOTAL_FACTOR * given, _MAX_TOTAL_BYTES)
        self._steps = 0
        self._deadline = time.thread_time() + _MAX_SECONDS

    def tick(self, count: int = 1) -> None:
        """Count steps.

        Raises:
            OutOfBudget: too many, or too much time has passed.
        """
        self._steps += count
        if self._steps > _MAX_STEPS:
            raise OutOfBudget(f"it takes more than {_MAX_STEPS} steps")
        if time.thread_time() > self._deadline:
            raise OutOfBudget(f"it takes more than {_MAX_SECONDS:g} seconds")

    def reserve(self, size: float) -> None:
        """Refuse to make a value of about this many bytes if that is too large."""
        if size > self.max_value:
            raise OutOfBudget(f"it makes a value of more than {self.max_value / 1e6:.0f} MB")

    def size(self, value: Any) -> int:
        """Bytes of a value, written out in full; refuses one that is too large."""
        if isinstance(value, str):
            total = sys.getsizeof(value)
            self.reserve(total)
            return total
        total = items = 0
        for part in _part_bytes(value):
            total += part
            items += 1
            if total > self.max_value:
                self.reserve(total)
        self.tick(items // 8)
        return total

    def made(self, value: Any) -> Any:
        """Count a new value; return it, an iterator so that its items are counted as they come."""
        if is_stream(value):
            return self.counted(value)
        self.spend(self.size(value))
        return value

    def spend(self, size: int) -> None:
        """Count bytes that were made."""
        self._left -= size
        if self._left < 0:
            raise OutOfBudget("it makes too many values, or too large ones")

    def counted(self, items: Iterator[Any]) -> Iterator[Any]:
        """Count the items of an iterator, which may have no end."""
        for item in items:
            self.tick()
            self.spend(_ITEM_BYTES)
            yield item


current: ContextVar[Budget] = ContextVar("budget of the template that is rendering")


def bytes_of(value: Any) -> int:
    """Bytes of a value, written out in full, however large it is."""
    return sum(_part_bytes(value))


def is_stream(value: Any) -> bool:
    """Whether it is an iterator that a template made, whose items come one by one."""
    return isinstance(value, Iterator) and not isinstance(value, LoopContext)


def _part_bytes(value: Any) -> Iterator[int]:
    pending = [value]
    while pending:
        item = pending.pop()
        yield _own_bytes(item)
        parts = _parts(item)
        if parts is not None:
            yield 8 * len(parts)
            pending += parts


def _own_bytes(item: Any) -> int:
    if isinstance(item, str):
        return sys.getsizeof(item)
    if isinstance(item, int):
        return _ITEM_BYTES + item.bit_length() // 2  # in decimal it is longer
    if isinstance(item, (bytes, bytearray)):
        return _ITEM_BYTES + 4 * len(item)
    return _ITEM_BYTES


def _parts(item: Any) -> list[Any] | None:
    if isinstance(item, (str, bytes, bytearray, range)):
        return None
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, (Sequence, Set, KeysView, ValuesView, ItemsView)):
        return list(item)
    if isinstance(item, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(item, "_Namespace__attrs")
        return [*attributes.keys(), *attributes.values()]
    return None
