"""Rows of several sequences: what each further one costs, fitted after the rest of the model.

The time of a step with one sequence follows from the fit to rows of one sequence; what is left
is fitted here, so that these rows do not change the others. Rows whose rate includes the prompts
have a part of them too: engines keep what prompts of a benchmark have in common.
"""

from collections.abc import Sequence

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published.fit import Fit, Key, Prior, keys_of
from edgelm.devices.published.rows import Row
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import Prediction

# `step` is the time without these terms, and so is its factor one.
PRIORS: dict[str, Prior] = {
    "step": Prior(1.0, 0.02),
    "batch_layers": Prior(8.0, 0.7, engine=0.5, architecture=0.3, device=0.3, mixture=0.5),
    "batch_vector": Prior(1.0, 0.5, engine=0.5, architecture=0.2, device=0.2, mixture=0.5),
    "batch_matrix": Prior(3.0, 0.7, engine=0.5, device=0.2, mixture=0.5),
    "batch_prompt": Prior(0.6, 0.5, engine=0.4, architecture=0.2, arithmetic=0.7, device=0.2),
}
_FOLDS = 5
_MAX_SHARE = 0.98
_ONE = Coefficients(1, 1, 1, 1, 0, batch_layer_us=1.0, batch_vector=1.0, batch_matrix=1.0)


def shared_coefficients(fit: Fit, keys: dict[str, Key]) -> Coefficients:
    """The coefficients of one sequence, for the group with these keys."""
    factors = fit.factors(keys)
    share = min(_MAX_SHARE, 1 / factors["read"])
    return Coefficients(
        bandwidth=share,
        cache_bandwidth=share,
        compute=1 / factors["matrices"],
        attention=1 / factors["attention"],
        layer_us=factors["layers"],
        unpack=factors["unpack"],
        prompt_layers=factors["prompt_layers"] / factors["layers"],
        recurrent_us=factors["recurrence"],
    )


def batch_observations(rows: Sequence[Row], fit: Fit) -> list[Observation]:
    """The steps of rows of several sequences, with the costs that `PRIORS` names."""
    return [_observation(row, fit) for row in rows]


def _observation(row: Row, fit: Fit) -> Observation:
    how, mode = shared_coefficients(fit, keys_of(row)), row.hardware.mode
    step = sum(
        cost.decode_parts(
            row.work, mode, how, depth=row.depth, batch=row.batch, arithmetic=row.arithmetic
        ).values()
    )
    more = cost.batch_parts(row.work, mode, _ONE, batch=row.batch, arithmetic=row.arithmetic)
    prompts = 0.0
    if row.includes_prompt:
        one = cost.prefill_parts(row.work, mode, how, tokens=row.prompt, arithmetic=row.arithmetic)
        prompts = row.batch * sum(one.values()) / row.output
    assert row.decode_ms is not None
    costs = (step, more["layers"], more["vector"], more["matrix"], prompts)
    return Observation(row, "batch", row.decode_ms, costs)


def leave_devices_out(rows: Sequence[Row], seen: Sequence[Observation]) -> list[Prediction]:
    """Predict every device's rows of several sequences by fits without any of its rows."""
    found: list[Prediction] = []
    families = sorted({row.hardware.family for row in rows})
    for family in families if len(families) > 1 else ():
        single = Fit([item for item in seen if item.row.hardware.family != family])
        others = [row for row in rows if row.hardware.family != family]
        held = [row for row in rows if row.hardware.family == family]
        found += predicted(held, others, single)
    return found


def leave_models_out(rows: Sequence[Row], seen: Sequence[Observation]) -> list[Prediction]:
    """Predict the rows of each fifth of the models by fits without them."""
    names = sorted({item.row.model.name for item in seen} | {row.model.name for row in rows})
    found = []
    for fold in range(_FOLDS):
        left = {name for index, name in enumerate(names) if index % _FOLDS == fold}
        held = [row for row in rows if row.model.name in left]
        if held and len(held) < len(rows):
            single = Fit([item for item in seen if item.row.model.name not in left])
            others = [row for row in rows if row.model.name not in left]
            found += predicted(held, others, single)
    return found


def predicted(held: Sequence[Row], others: Sequence[Row], single: Fit) -> list[Prediction]:
    """Predict `held` rows by a fit to `others`, given a fit to rows of one sequence."""
    fit = fit_batches(others, single)
    return [Prediction(item, fit.predict_ms(item)) for item in batch_observations(held, single)]


def fit_batches(rows: Sequence[Row], single: Fit) -> Fit:
    """The factors of rows of several sequences, given a fit to rows of one."""
    return Fit(batch_observations(rows, single), PRIORS)
