"""`edge-devices fit`: fit the cost model, cross-validate it, and write the requested files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgelm.devices.published import batches
from edgelm.devices.published.fit import Fit
from edgelm.devices.published.report import score_table, write_report
from edgelm.devices.published.rows import Table, read_rows
from edgelm.devices.published.terms import Observation, observations
from edgelm.devices.published.validation import (
    Prediction,
    Ranges,
    leave_models_out,
    leave_one_device_out,
    ranges,
    scores,
)
from edgelm.devices.published.write import FAMILIAR, coefficient_table, write_table
from edgelm.errors import BadInput


def fit_rows(path: Path, output: Path | None, report: Path | None) -> None:
    """Fit to a table of published rows; print the errors of cross-validation."""
    _check_outputs(output, report)
    table, seen = _read(path)
    unseen, familiar = _left_out(seen, table)
    unseen_ranges, familiar_ranges = _ranges(unseen, familiar)
    print(_used(path, table))
    print("\nEvery device, predicted by a fit on the others:")
    print(score_table(scores(unseen, unseen_ranges)))
    print("\nModels left out in five folds, on devices that the fit knows with other models:")
    print(score_table(scores(familiar, familiar_ranges)))
    if report:
        write_report(report, table, unseen, familiar, unseen_ranges, familiar_ranges)
        print(f"\nwrote {report}")
    if output:
        write_table(
            coefficient_table(
                seen, fitted_on(seen, table), unseen_ranges, familiar_ranges, table.batched
            ),
            output,
        )
        print(f"\nwrote {output}")


def predict_rows(path: Path, unfitted: Path, report: Path | None) -> None:
    """Fit to one table and predict the rows of another."""
    _check_outputs(None, report)
    fitted, seen = _read(path)
    table, held = _read(unfitted)
    known = Counter((row.engine, row.hardware.family) for row in (*fitted.rows, *fitted.batched))
    unseen_ranges, familiar_ranges = _ranges(*_left_out(seen, fitted))
    fit = Fit(seen)
    predictions = [Prediction(item, fit.predict_ms(item)) for item in held]
    if fitted.batched:
        predictions += batches.predicted(table.batched, fitted.batched, fit)
    parts = {
        "Devices that the fit knows with the same engine:": (True, familiar_ranges),
        "Other devices:": (False, unseen_ranges),
    }
    print(_used(unfitted, table))
    for title, (wanted, held_ranges) in parts.items():
        chosen = [one for one in predictions if _known(one, known) == wanted]
        if chosen:
            print(f"\n{title}\n{score_table(scores(chosen, held_ranges))}")
    if report:
        write_report(report, table, predictions, [], unseen_ranges, familiar_ranges)
        print(f"\nwrote {report}")


def fitted_on(seen: Sequence[Observation], table: Table) -> str:
    """What a table of coefficients says that it was fitted on."""
    return f"{len(seen)} times of {len(table.rows)} published rows{_several(table)}"


def _several(table: Table) -> str:
    return f", and {len(table.batched)} of several sequences" if table.batched else ""


def _left_out(
    seen: Sequence[Observation], table: Table
) -> tuple[list[Prediction], list[Prediction]]:
    """Predictions of devices, and of models, that the fit did not see."""
    unseen = leave_one_device_out(seen) + batches.leave_devices_out(table.batched, seen)
    familiar = leave_models_out(seen) + batches.leave_models_out(table.batched, seen)
    return unseen, familiar


def _ranges(unseen: Sequence[Prediction], familiar: Sequence[Prediction]) -> tuple[Ranges, Ranges]:
    """The ranges of devices without and with rows, as the table of coefficients has them."""
    known = ranges(familiar)
    return ranges(unseen).at_least(known), known


def _check_outputs(output: Path | None, report: Path | None) -> None:
    """Check the paths before the fit, which takes minutes."""
    if output and output.is_dir():
        raise BadInput(f"{output} is a folder; expected a file to write the coefficients to")
    for path in (output.parent if output else None, report):
        existing = path and next(one for one in (path, *path.parents) if one.exists())
        if existing and not existing.is_dir():
            raise BadInput(f"{existing} is a file; expected a folder")


def _known(prediction: Prediction, known: Counter[tuple[str, str]]) -> bool:
    row = prediction.observation.row
    return known[row.engine, row.hardware.family] >= FAMILIAR


def _read(path: Path) -> tuple[Table, list[Observation]]:
    table = read_rows(path)
    seen = observations(table.rows)
    if not seen:
        raise BadInput(f"{path}: no usable rows; left out: {table.left_out}")
    return table, seen


def _used(path: Path, table: Table) -> str:
    lines = [f"{path}: {len(table.rows)} rows used{_several(table)}"]
    lines += [f"  {count:>4} left out: {reason}" for reason, count in table.left_out.items()]
    return "\n".join(lines)
