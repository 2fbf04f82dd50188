"""Fit the cost model's coefficients to published measurements by partial pooling.

The time of a row is a sum of costs (terms.py), each times a factor; the logarithm of a factor is
a mean over all rows plus deviations by engine, architecture, both, chip and device, every
deviation drawn from a normal distribution around zero. A group with many rows gets its own value,
a group with few stays near its parent, and a device without rows gets its parent's value: the
partial pooling of Gelman and Hill (2007), chapter 12, as a maximum a posteriori estimate. Errors
are relative (logarithms of times) and their influence is bounded (Huber 1964), since published
tables contain wrong rows.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY, overlapped
from edgelm.devices.published.rows import Row
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.times import Array, times_of

Key = str | bool | tuple[str, ...]
LEVELS: dict[str, Callable[[Row], Key]] = {
    "engine": lambda row: row.engine,
    "architecture": lambda row: row.hardware.architecture,
    "both": lambda row: (row.engine, row.hardware.architecture),
    "chip": lambda row: (row.engine, row.hardware.chip),
    "device": lambda row: (row.engine, row.hardware.family),
    "arithmetic": lambda row: row.arithmetic == WEIGHT_ONLY,
    "mixture": lambda row: "experts" if row.work.experts else "dense",
}


@dataclass(frozen=True)
class Prior:
    """The prior of a factor: its mean, its spread, and the spreads of its groups.

    Spreads are logarithmic, so that 0.1 is about 10%; with 0 the groups do not differ.
    """

    mean: float
    spread: float
    engine: float = 0.0
    architecture: float = 0.0
    both: float = 0.0
    chip: float = 0.0
    device: float = 0.0
    arithmetic: float = 0.0
    mixture: float = 0.0


# Reads come close to the bandwidth everywhere; the cost of a layer depends most on the kernels that
# an engine has for an architecture, then on the device and mixtures of experts. With these spreads,
# devices that were left out of the fit are predicted best (docs/explanation/cost-model.md).
PRIORS: dict[str, Prior] = {
    "read": Prior(1.15, 0.1, engine=0.06, architecture=0.01, chip=0.04, device=0.06, mixture=0.1),
    # Nearly every row is in a fast power mode, where reading hides it
    # (docs/explanation/cost-model.md).
    "unpack": Prior(0.06, 0.15, engine=0.3),
    "layers": Prior(
        88.0, 0.35, engine=0.2, architecture=0.3, both=0.4, chip=0.2, device=0.4, mixture=0.6
    ),
    "prompt_layers": Prior(
        70.0, 0.5, engine=0.15, architecture=0.8, both=0.07, device=0.2, mixture=0.3
    ),
    "matrices": Prior(3.0, 0.5, engine=0.2, architecture=0.3, both=0.07, device=0.2),
    "attention": Prior(5.0, 0.5, engine=0.6, architecture=0.05, both=0.1, device=0.07),
    "recurrence": Prior(90.0, 0.7, engine=0.2, architecture=0.1, both=0.1, device=4.0),
}
_SIGMA = {False: 0.1, True: 0.2}  # relative error of a row; larger for crowd-sourced ones
_HUBER = 1.5
_MAX_ROWS = 10  # of one engine on one device; with more rows each has a smaller weight
_STEPS = 60


class Fit:
    """Fitted factors, also for groups without rows."""

    def __init__(
        self, seen: Sequence[Observation], priors: Mapping[str, Prior] | None = None
    ) -> None:
        self._priors = PRIORS if priors is None else priors
        self._columns = _columns(seen, self._priors)
        self._theta = _solve(seen, self._columns, self._priors)

    def factor(self, term: str, keys: dict[str, Key]) -> float:
        """A term's factor for the group with these keys; a missing level counts as unknown."""
        total = 0.0
        for column, (name, level, key) in enumerate(self._columns):
            if name == term and (level == "all" or keys.get(level) == key):
                total += self._theta[column]
        return float(np.exp(total))

    def predict_ms(self, observation: Observation) -> float:
        """The predicted time in milliseconds."""
        factors = self.factors(keys_of(observation.row))
        costs = dict(zip(self._priors, observation.costs, strict=True))
        total = sum(costs[term] * factors[term] for term in costs)
        if not observation.overlapped:
            return total
        read, unpack = observation.overlapped * factors["read"], costs["unpack"] * factors["unpack"]
        return total - read - unpack + overlapped(read, unpack)

    def factors(self, keys: dict[str, Key]) -> dict[str, float]:
        """The factors of all terms for the group with these keys."""
        return {term: self.factor(term, keys) for term in self._priors}


def keys_of(row: Row) -> dict[str, Key]:
    """The groups of a row."""
    return {level: key(row) for level, key in LEVELS.items()}


_Column = tuple[str, str, Key]


def _columns(seen: Sequence[Observation], priors: Mapping[str, Prior]) -> list[_Column]:
    columns: list[_Column] = [(term, "all", "") for term in priors]
    for term, prior in priors.items():
        for level, key in LEVELS.items():
            if getattr(prior, level) > 0:
                groups = {key(observation.row): None for observation in seen}
                columns += [(term, level, group) for group in groups]
    return columns


def _solve(
    seen: Sequence[Observation], columns: list[_Column], priors: Mapping[str, Prior]
) -> Array:
    measured = np.array([observation.measured_ms for observation in seen])
    weights = _weights(seen)
    members = _members(seen, columns)
    names = list(priors)
    terms = np.array([names.index(term) for term, _, _ in columns])
    centre, spread = _prior(columns, priors)
    times = times_of(seen, names)

    def model(theta: Array) -> tuple[Array, Array]:
        """Weighted relative errors and their derivatives."""
        exponents = np.stack(
            [members[:, terms == term] @ theta[terms == term] for term in range(len(names))], 1
        )
        total, slopes = times(np.exp(exponents))
        jacobian = members * (slopes / total[:, None])[:, terms]
        return weights * np.log(total / measured), weights[:, None] * jacobian

    theta, damping = centre.copy(), 1e-2
    errors, jacobian = model(theta)
    loss = _loss(errors, (theta - centre) / spread)
    for _ in range(_STEPS):
        trust = np.minimum(1.0, _HUBER / np.maximum(np.abs(errors), 1e-12))
        gradient = jacobian.T @ (trust * errors) + (theta - centre) / spread**2
        curvature = (jacobian * trust[:, None]).T @ jacobian + np.diag(1 / spread**2)
        damped = curvature + damping * np.diag(np.diag(curvature))
        trial = theta - np.linalg.solve(damped, gradient)
        trial_errors, trial_jacobian = model(trial)
        trial_loss = _loss(trial_errors, (trial - centre) / spread)
        if trial_loss >= loss:
            damping *= 4
            if damping > 1e6:
                break
            continue
        done = loss - trial_loss < 1e-6 * loss
        theta, errors, jacobian, loss = trial, trial_errors, trial_jacobian, trial_loss
        damping /= 3
        if done:
            break
    return theta


def _members(seen: Sequence[Observation], columns: list[_Column]) -> Array:
    """1 where an observation belongs to a column's group: [observations, columns]."""
    keys = [keys_of(item.row) for item in seen]
    return np.array(
        [[level == "all" or own[level] == group for _, level, group in columns] for own in keys],
        dtype=float,
    )


def _weights(seen: Sequence[Observation]) -> Array:
    """One over the expected error, limited for groups with many rows."""

    def group(item: Observation) -> tuple[str, str, str]:
        return item.kind, item.row.engine, item.row.hardware.family

    counts = Counter(group(item) for item in seen)
    return np.array(
        [
            min(1.0, (_MAX_ROWS / counts[group(item)]) ** 0.5) / _SIGMA[item.row.crowd]
            for item in seen
        ]
    )


def _prior(columns: list[_Column], priors: Mapping[str, Prior]) -> tuple[Array, Array]:
    centre, spread = [], []
    for term, level, _ in columns:
        prior = priors[term]
        centre.append(np.log(prior.mean) if level == "all" else 0.0)
        spread.append(prior.spread if level == "all" else getattr(prior, level))
    return np.array(centre), np.array(spread)


def _loss(errors: Array, deviations: Array) -> float:
    small = np.abs(errors) <= _HUBER
    huber = np.where(small, errors**2, 2 * _HUBER * np.abs(errors) - _HUBER**2)
    return float(huber.sum() + (deviations**2).sum())
