"""Which tokens a windowed layer's cache holds, where it has fewer rows than the context.

ONNX Runtime's GroupQueryAttention with `sliding_window_cache` appends to the rows until they are
full. Then it drops the oldest ones, as many as there are rows beside the window and one more, and
moves the others to the front (section "Windowed KV Cache" of the operator's description). What it
holds depends on the number of tokens only, not on how they were given.
"""

from collections.abc import Sequence

from edgelm.errors import BadInput
from edgelm.runtime.engines.recurrent_state import Arrays, RecurrentState


def first_held(tokens: int, rows: int, window: int) -> int:
    """The oldest of `tokens` tokens that is held; all later ones are, in order, from row 0."""
    if tokens <= rows:
        return 0
    dropped = rows - window + 1
    return dropped * -(-(tokens - rows) // dropped)


def _last_alike(tokens: int, rows: int, window: int) -> int:
    """The most tokens, at least `tokens`, of which the same one is the oldest that is held."""
    dropped = rows - window + 1
    return rows + dropped * max(0, -(-(tokens - rows) // dropped))


class WindowLayout:
    """The rows and windows of the layers whose cache is cut.

    Args:
        sizes: rows and window of each of them.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = tuple(sizes)
        self._kinds = frozenset(sizes)

    def held(self, tokens: int) -> list[int]:
        """How many tokens each layer holds of a sequence of this length."""
        return [tokens - first_held(tokens, *size) for size in self.sizes]

    def covers(self, tokens: int, length: int) -> bool:
        """Whether what is held after `tokens` tokens begins with what `length` of them need."""
        return length <= tokens and all(
            first_held(tokens, *size) == first_held(length, *size) for size in self._kinds
        )

    def together(self, length: int, most: int) -> int:
        """How many tokens, up to `most`, may follow `length` others in one run: see RecurrentState.

        Where rows are dropped for a later token, those before it read moved rows, whose sums are
        rounded otherwise.
        """
        ends = (_last_alike(length + 1, *size) for size in self._kinds)
        return min(most, *(end - length for end in ends)) if self._kinds else most


class JointState:
    """Several states of one sequence as one: their tensors one after the other."""

    def __init__(self, parts: Sequence[RecurrentState]) -> None:
        self.parts = parts

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def read(self, length: int) -> Arrays:
        return [array for part in self.parts for array in part.read(length)]

    def write(self, length: int, arrays: Arrays) -> None:
        at = 0
        for part in self.parts:
            part.write(length, arrays[at : at + part.count])
            at += part.count

    def clear(self) -> None:
        for part in self.parts:
            part.clear()

    def covers(self, tokens: int, length: int) -> bool:
        return all(part.covers(tokens, length) for part in self.parts)

    def together(self, length: int, most: int) -> int:
        return min(part.together(length, most) for part in self.parts)


def check_held(arrays: Arrays, held: Sequence[int], length: int) -> None:
    """Raise BadInput unless keys and values have the rows that layers hold of `length` tokens."""
    for number, array in enumerate(arrays):
        if array.shape[2] != held[number // 2]:
            raise BadInput(
                f"the state has {array.shape[2]} rows of a windowed layer, expected "
                f"{held[number // 2]} after {length} tokens; delete it"
            )
