"""The gain of alternating pairs of runs, and how sure it is."""

import numpy as np
import numpy.typing as npt

Ratios = npt.NDArray[np.float64]  # [tasks, pairs]: speed with over speed without

_RESAMPLES = 10_000
_SHARE = 0.95


def gain_of(ratios: Ratios) -> float:
    """The geometric mean over tasks of each task's median.

    Tasks gain differently: a median over the pairs of two tasks would be the one or the other.
    """
    return float(_gains(ratios))


def interval_of(ratios: Ratios) -> tuple[float, float]:
    """Where the gain lies with 95% probability, by the bootstrap (percentiles).

    Pairs are drawn within each task: it says how exactly these tasks were measured, not how much
    other tasks would gain. The interval of fewer than six pairs is too narrow.
    """
    tasks, pairs = ratios.shape
    drawn = np.random.default_rng(0).integers(0, pairs, (_RESAMPLES, tasks, pairs))
    gains = _gains(np.take_along_axis(ratios[None], drawn, axis=2))
    low, high = np.quantile(gains, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return float(low), float(high)


def _gains(ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gains of ratios [..., tasks, pairs]."""
    gains: npt.NDArray[np.float64] = np.exp(np.log(np.median(ratios, axis=-1)).mean(axis=-1))
    return gains
