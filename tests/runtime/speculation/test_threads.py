"""What generations of several threads share: measured costs and trials of the draft model."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from edgelm.runtime.speculation.costs import SIZES, StepCosts
from edgelm.runtime.speculation.speculator import SpeculationState, Speculator
from edgelm.runtime.speculation.trials import DraftTrials


class _Interrupted(dict[int, Any]):
    """A dictionary during whose iteration another thread comes to run."""

    def __init__(self, values: dict[int, Any], other: threading.Thread) -> None:
        super().__init__(values)
        self._other = other

    def items(self) -> Iterator[tuple[int, Any]]:  # type: ignore[override]
        for number, pair in enumerate(super().items()):
            if not number and self._other.ident is None:
                self._other.start()
                self._other.join(0.1)  # it waits for this thread, or is done
            yield pair


def test_costs_are_read_while_another_thread_measures() -> None:
    reads: list[Callable[[StepCosts], object]] = [
        lambda costs: costs.ratio(4),
        lambda costs: costs.measured(),
    ]
    for read in reads:
        costs = StepCosts()
        for _ in range(3):
            costs.single(0.01)
        costs.several(2, 0.012)
        other = threading.Thread(target=costs.several, args=(3, 0.014))
        costs._ratios = _Interrupted(costs._ratios, other)
        read(costs)
        other.join()
        assert costs.measured() == {2: 1.2, 3: 1.4}


class _StillDue(DraftTrials):
    """As a generation sees it that looked before another one began the trial."""

    @property
    def due(self) -> bool:
        return True


class _Draft:
    def room(self, length: int) -> int:
        return 10**6

    def propose(self, history: list[int], count: int, costs: StepCosts, _: Any = None) -> list[int]:
        return [7] * count


def test_one_generation_begins_a_trial() -> None:
    state = SpeculationState()
    for _ in range(3):
        state.costs.single(0.01)
    for size in SIZES:
        state.costs.several(size, 0.01 * size)
    state.trials = _StillDue()
    draft: Any = _Draft()
    found = [Speculator("draft", state, [1, 2, 3]).propose(15, draft) for _ in range(3)]
    assert found == [[7, 7], [], []]
