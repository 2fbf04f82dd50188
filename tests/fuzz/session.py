"""Run some cases of one kind."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.kind import Kind
from tests.fuzz.outcome import Outcome
from tests.fuzz.runner import Runner

SAVED = Path(__file__).resolve().parents[2] / "build" / "fuzz"


@contextmanager
def prepared(kind: type[Kind], folder: Path | None = None) -> Iterator[Kind]:
    """A kind with its materials, which are removed afterwards."""
    with TemporaryDirectory(prefix="edgelm-fuzz-", dir=folder) as materials:
        made = kind()
        made.prepare(Path(materials))
        yield made


def run(kind: Kind, seed: int, cases: Iterable[int], *, jobs: int = 1) -> Iterator[Outcome]:
    """Yield outcomes; files of failing cases are kept in build/fuzz."""
    with TemporaryDirectory(prefix="edgelm-fuzz-") as scratch:
        runner = Runner(kind, seed, Path(scratch), jobs=jobs, save=SAVED)
        yield from runner.run(cases)
