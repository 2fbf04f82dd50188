"""Times of many rows at once as a function of their factors, with derivatives, for the fit."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgelm.devices.planner.cost_model.cost import OVERLAP
from edgelm.devices.published.terms import Observation

Array = npt.NDArray[np.float64]


def times_of(
    seen: Sequence[Observation], terms: Sequence[str]
) -> Callable[[Array], tuple[Array, Array]]:
    """A function from factors [rows, terms] to times [rows] and slopes [rows, terms].

    Slopes are the derivatives by the logarithm of each factor. A time is the sum of costs times
    factors, but for weights that are unpacked while they are read (see cost.overlapped).
    """
    costs = np.array([observation.costs for observation in seen])
    shared = np.array([observation.overlapped for observation in seen])
    if not shared.any():
        return lambda factors: ((costs * factors).sum(1), costs * factors)
    read, unpack = terms.index("read"), terms.index("unpack")

    def times(factors: Array) -> tuple[Array, Array]:
        slopes = costs * factors
        reading, unpacking = shared * factors[:, read], slopes[:, unpack].copy()
        longer = np.maximum(np.maximum(reading, unpacking), 1e-300)
        powers = (reading / longer) ** OVERLAP, (unpacking / longer) ** OVERLAP
        both = longer * (powers[0] + powers[1]) ** (1 / OVERLAP)
        share = powers[0] / (powers[0] + powers[1] + 1e-300)
        together = (shared > 0) & (unpacking > 0)
        slopes[:, read] += np.where(together, both * share - reading, 0.0)
        slopes[:, unpack] = np.where(together, both * (1 - share), unpacking)
        return slopes.sum(1), slopes

    return times
