"""The table of published measurements that the delivered coefficients were fitted on."""

from pathlib import Path

import pytest

from edgelm.devices.published.rows import read_rows
from edgelm.devices.published.terms import Observation, observations

_ROWS = Path(__file__).resolve().parents[4] / "shared" / "data" / "published_benchmarks_dev.csv"


@pytest.fixture(scope="session")
def published() -> Path:
    """The table; tests of it are skipped where it is not at hand."""
    if not _ROWS.is_file():
        pytest.skip(f"no table of published measurements at {_ROWS}")
    return _ROWS


@pytest.fixture(scope="session")
def times(published: Path) -> list[Observation]:
    """Every time in it that can be compared."""
    return observations(read_rows(published).rows)
