"""What cannot be cut back to fewer tokens, and how a sequence returns to an earlier length.

Rows of keys and values are cut back by forgetting a length. A convolution's tail, a matrix state or
a cache that holds a window only cannot be: snapshots are taken where a sequence is likely to return
to, at the ends of chunks and of turns, and the tokens after a snapshot are run again.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgelm.bundle import StateTensor
from edgelm.devices.planner.memory.snapshots import SNAPSHOTS

Arrays = list[npt.NDArray[Any]]
STATE_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_MAX_BYTES = 16 << 20  # of snapshots; at least SNAPSHOTS are kept
_DECODED = 64  # tokens between two snapshots while decoding


class RecurrentState(Protocol):
    """The state of one sequence in an engine's memory; all zeros before the first token."""

    @property
    def count(self) -> int:
        """How many tensors it has."""

    def read(self, length: int) -> Arrays:
        """Copies of its tensors on the host, after `length` tokens."""

    def write(self, length: int, arrays: Arrays) -> None:
        """Replace it by what `read` gave after `length` tokens.

        Raises:
            BadInput: tensors that are of another number of tokens; nothing has changed.
        """

    def clear(self) -> None:
        """As before the first token."""

    def covers(self, tokens: int, length: int) -> bool:
        """Whether the state after `tokens` tokens is also that of the first `length` of them."""

    def together(self, length: int, most: int) -> int:
        """How many tokens, up to `most`, a run behind `length` others may take as if one by one.

        Each is then computed over the same rows in the same order.
        """


class HostState:
    """State in host memory: a graph reads `past` and writes `present`, then `advance` is called.

    Args:
        tensors: what the graph reads and writes.
        in_place: past and present are the same memory, for a graph whose operators read a tensor
            of the state before they write it, and where no other operator reads it.
    """

    def __init__(self, tensors: tuple[StateTensor, ...], *, in_place: bool = False) -> None:
        self.in_place = in_place
        self.past = _zeros(tensors)
        self.present = self.past if in_place else _zeros(tensors)

    @property
    def count(self) -> int:
        return len(self.past)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        once = sum(array.nbytes for array in self.past)
        return once if self.in_place else 2 * once

    def advance(self) -> None:
        """What the graph wrote is the next run's past; its addresses stay."""
        if self.in_place:
            return
        for past, present in zip(self.past, self.present, strict=True):
            past[:] = present

    def read(self, length: int) -> Arrays:
        return [array.copy() for array in self.past]

    def write(self, length: int, arrays: Arrays) -> None:
        for own, given in zip(self.past, arrays, strict=True):
            own[:] = given

    def clear(self) -> None:
        for array in self.past:
            array[:] = 0

    def covers(self, tokens: int, length: int) -> bool:
        return tokens == length

    def together(self, length: int, most: int) -> int:
        return most


def _zeros(tensors: tuple[StateTensor, ...]) -> Arrays:
    return [np.zeros((1, *one.shape), STATE_DTYPES[one.dtype]) for one in tensors]


class SnapshotHistory:
    """Snapshots of a sequence's state by the number of tokens that it had seen.

    `at` is how many tokens the engine's state has seen; -1 after a run that failed.
    """

    def __init__(self, state: RecurrentState) -> None:
        self.state = state
        self.at = 0
        self._taken: dict[int, Arrays] = {}
        self._within_answers: set[int] = set()
        self._trial: int | None = None

    def advanced(self, length: int, *, decoded: bool) -> None:
        """The state has now seen `length` tokens; snapshots follow chunks, and a few decodes."""
        self.at = length
        if not decoded or length % _DECODED == 0:
            self.take(decoded=decoded)

    def take(self, *, decoded: bool = False) -> None:
        """Remember the state as it is; in the middle of an answer where it is `decoded`."""
        if self.at <= 0:
            return
        if not decoded:
            self._within_answers.discard(self.at)
        if self.at not in self._taken:
            self._taken[self.at] = self.state.read(self.at)
            if decoded:
                self._within_answers.add(self.at)
            self._thin_out()

    def begin_trial(self, count: int) -> None:
        """Remember the state before `count` tokens of which some may be dropped.

        Once for several runs, and only where the state after them cannot be cut back.
        """
        if self.state.covers(self.at + count, self.at):
            return
        if self._trial is None and self.at > 0 and self.at not in self._taken:
            self.take()
            self._trial = self.at

    def end_trial(self) -> None:
        """Drop the snapshot that the trial took: speculative steps would crowd out all others."""
        if self._trial is not None:
            self._taken.pop(self._trial, None)
            self._trial = None

    def leave_trial(self) -> None:
        """A trial that was not ended is no longer one: its snapshot stays like all others."""
        self._trial = None

    def forget_after(self, length: int) -> None:
        """Drop snapshots of tokens that are no longer part of the sequence."""
        self._taken = {at: one for at, one in self._taken.items() if at <= length}

    def failed(self) -> None:
        """The state is of no known length."""
        self.at = -1

    def return_to(self, length: int) -> int:
        """Bring the state to at most `length` tokens, by the newest snapshot; returns how many."""
        if self.at >= length and self.state.covers(self.at, length):
            self.at = length
            return length
        # How many tokens each snapshot leaves, cut back where it is of more.
        left = {
            at: min(at, length)
            for at in self._taken
            if at <= length or self.state.covers(at, length)
        }
        found = max(left, key=left.__getitem__, default=0)
        if found:
            self.state.write(found, self._taken[found])
        else:
            self.state.clear()
        self.at = left.get(found, 0)
        return self.at

    def replace(self, length: int, arrays: Arrays) -> None:
        """Hold the state that another session had after `length` tokens."""
        self._taken.clear()
        self.at = -1
        self.state.write(length, arrays)
        self.at = length
        self.take()

    def _thin_out(self) -> None:
        taken = self._taken.values()
        size = max(sum(array.nbytes for array in arrays) for arrays in taken)
        most = max(SNAPSHOTS, _MAX_BYTES // max(1, size))
        if len(self._taken) <= most:
            return
        lengths = sorted(self._taken)
        # One within an answer, else the one whose neighbors are nearest to each other, for how far
        # back it is: returning to the last turns never runs a long conversation again. The first
        # and the last stay, and the beginning of the last answer.
        gaps = {
            at: (after - before) / (lengths[-1] - at)
            for before, at, after in zip(lengths, lengths[1:], lengths[2:], strict=False)
        }
        turns = [at for at in lengths if at not in self._within_answers]
        least = self._within_answers & gaps.keys() or set(gaps) - set(turns[-1:])
        del self._taken[min(least, key=gaps.__getitem__)]
