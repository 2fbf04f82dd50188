"""Cross-validation of the cost model, and the ranges that plans print.

Every family of devices is predicted by a fit on all others. For familiar devices the models are
left out instead, in five folds. A range holds 94% of these errors (92% of batches and prompts), by
engine if it has enough rows: wider than the 80% that plans promise, which later rows are to meet.
Steps of several sequences have ranges of their own, and mixtures of experts at least those of all
mixtures.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from edgelm.devices.published.fit import Fit
from edgelm.devices.published.terms import Observation
from edgelm.errors import BadInput

_FOLDS = 5
_MIN_GROUPS = 2
# Of the errors seen here, so that the range holds 80% of later ones
# (docs/explanation/cost-model.md).
_INSIDE = {"decode": 0.94, "batch": 0.92, "prefill": 0.92}
KINDS = ("decode", "batch", "prefill")
_MIXTURES = "mixtures"
_ENOUGH = 20  # errors of one engine, enough for a range of its own


class Prediction(msgspec.Struct, frozen=True):
    """A measured time, and its prediction by a fit without its device (or its model)."""

    observation: Observation
    predicted_ms: float

    @property
    def error(self) -> float:
        """Logarithm of measured over predicted time: at 0.1 the prediction is 10% too short."""
        return math.log(self.observation.measured_ms / self.predicted_ms)

    @property
    def relative(self) -> float:
        """Error of the predicted rate, relative to the measured one."""
        return abs(self.observation.measured_ms / self.predicted_ms - 1)


def leave_one_device_out(seen: Sequence[Observation]) -> list[Prediction]:
    """Predict every device by a fit on all others."""
    return _left_out(seen, lambda item: item.row.hardware.family)


def leave_models_out(seen: Sequence[Observation]) -> list[Prediction]:
    """Predict models on devices that the fit knows with other models, in five folds."""
    names = sorted({item.row.model.name for item in seen})
    return _left_out(seen, lambda item: str(names.index(item.row.model.name) % _FOLDS))


def _left_out(seen: Sequence[Observation], group: Callable[[Observation], str]) -> list[Prediction]:
    found = []
    names = sorted({group(item) for item in seen})
    if len(names) < _MIN_GROUPS:
        raise BadInput(
            "cross-validation needs at least two devices and two models; the rows have only "
            f"{seen[0].row.hardware.family}, {seen[0].row.model.name}"
        )
    for name in names:
        fit = Fit([item for item in seen if group(item) != name])
        found += [Prediction(item, fit.predict_ms(item)) for item in seen if group(item) == name]
    return found


class Score(msgspec.Struct, frozen=True):
    """Errors of one kind of rows."""

    kind: str
    crowd: bool
    rows: int
    median: float
    inside: float  # share of rows within the promised range

    @property
    def title(self) -> str:
        rows = "crowd-sourced" if self.crowd else "vendor-published and independent"
        kind = "decode of several sequences" if self.kind == "batch" else self.kind
        return f"{kind}, {rows}"


def scores(predictions: Sequence[Prediction], ranges: "Ranges") -> list[Score]:
    """Errors of decode and prefill, separately for crowd-sourced rows."""
    found = []
    for kind in KINDS:
        for crowd in (False, True):
            chosen = [
                item
                for item in predictions
                if item.observation.kind == kind and item.observation.row.crowd == crowd
            ]
            if chosen:
                inside = [abs(item.error) <= ranges.band(item.observation) for item in chosen]
                median = _quantile([item.relative for item in chosen], 0.5)
                share = sum(inside) / len(inside)
                found.append(Score(kind, crowd, len(chosen), median, share))
    return found


class Ranges(msgspec.Struct, frozen=True):
    """Half widths of the promised range, in logarithms, by kind and engine ('' is any).

    Mixtures of experts have an entry in the place of an engine.
    """

    widths: dict[tuple[str, str], float]

    def width(self, kind: str, engine: str) -> float:
        """The range of an engine, or of all."""
        return self.widths.get((kind, engine), self.widths.get((kind, ""), math.log(2)))

    def at_least(self, other: "Ranges") -> "Ranges":
        """These, where the other's are not wider.

        Devices without rows are known no better than those with.
        """
        keys = {*self.widths, *other.widths}
        return Ranges({key: max(self.width(*key), other.width(*key)) for key in sorted(keys)})

    def widest(self, kind: str) -> float:
        """The widest range of any engine."""
        widths = [
            width for (of, who), width in self.widths.items() if of == kind and who != _MIXTURES
        ]
        return max(widths, default=math.log(2))

    def band(self, item: Observation) -> float:
        """The range promised for an observation."""
        width = self.width(item.kind, item.row.engine)
        if item.row.work.experts:
            width = max(width, self.widths.get((item.kind, _MIXTURES), 0.0))
        return width


def ranges(predictions: Iterable[Prediction]) -> Ranges:
    """The ranges that hold the errors, by kind and engine."""
    errors: dict[tuple[str, str], list[float]] = {}
    for item in predictions:
        kind, row = item.observation.kind, item.observation.row
        groups = ["", row.engine, *([_MIXTURES] if row.work.experts else [])]
        for engine in groups:
            errors.setdefault((kind, engine), []).append(abs(item.error))
    return Ranges(
        {
            key: _quantile(values, _INSIDE[key[0]])
            for key, values in errors.items()
            if not key[1] or len(values) >= _ENOUGH
        }
    )


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
