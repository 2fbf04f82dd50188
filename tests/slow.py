"""Cases of a test that `make test` leaves to `make slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], keep: Iterable[Any]) -> list[Any]:
    """All cases of a parametrized test; those that are not among `keep` are slow.

    A case is a value, or a tuple of values. Each of the cases left out shows what another also
    shows, on a family or an option of its own.
    """
    kept = list(keep)
    return [case if case in kept else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
