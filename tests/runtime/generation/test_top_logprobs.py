"""The most probable tokens: those of a full sort, equal ones in the order of their ids."""

import numpy as np
import numpy.typing as npt
import pytest

from edgelm.runtime.generation.decoding import largest

_ROWS = {
    "all different": np.random.default_rng(0).normal(size=5000),
    "many equal": np.random.default_rng(1).integers(0, 4, 5000).astype(np.float64),
    "forbidden": np.where(np.arange(5000) % 1000 == 7, -1.0, -np.inf),
    "one": np.zeros(1),
}


@pytest.mark.parametrize("count", [0, 1, 20, 4999, 5000, 6000])
@pytest.mark.parametrize("row", _ROWS.values(), ids=_ROWS)
def test_as_a_full_sort(row: npt.NDArray[np.float64], count: int) -> None:
    expected = np.argsort(-row, kind="stable")[:count]
    assert largest(row, count).tolist() == expected.tolist()
