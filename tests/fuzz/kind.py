"""What a kind of file must say to be fuzzed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

Opened = Literal["equal", "other"]


@dataclass(frozen=True, slots=True)
class Case:
    """One mutation: what was done in words, and what `check` must know of it."""

    note: str
    facts: dict[str, Any] = field(default_factory=dict)


class Kind(ABC):
    """One kind of file.

    `prepare` runs once and may be slow. `make` and `check` run in a child, `make` without limits;
    the same random state makes the same files.
    """

    name: ClassVar[str]
    tested: ClassVar[int] = 500
    """Cases in `make test`."""

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Write what cases are mutations of, and import what opening them needs."""

    @abstractmethod
    def make(self, rng: Random, folder: Path) -> Case:
        """Write one case into an empty folder."""

    @abstractmethod
    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        """Open a case, and compare it with an independent reader.

        Call `reference` before the independent reader runs: from there on neither its errors nor
        its time and memory are ours.

        Raises:
            Wrong: it opened, and should not have, or as something else.
        """
