"""Steps of several sequences: their costs by hand, and factors of made-up rows that are found."""

import msgspec
import pytest

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY
from edgelm.devices.published import batches
from edgelm.devices.published.fit import Fit, keys_of
from edgelm.devices.published.hardware import Hardware
from edgelm.devices.published.rows import Row
from edgelm.devices.published.terms import Observation
from tests.devices.published.synthetic import DENSE, TRUE, box, row, sample

SEVERAL = msgspec.structs.replace(TRUE, batch_layer_us=15.0, batch_vector=1.4, batch_matrix=6.0)
BOXES = [box("small", bandwidth_gb_s=70), box("middle"), box("large", bandwidth_gb_s=500)]


def step_of(hardware: Hardware, model: str, arithmetic: str, batch: int) -> Row:
    """A row of several sequences with the cost model's own rate."""
    made = row(model, hardware, arithmetic=arithmetic, decode_tok_s=1.0)
    step = cost.decode_ms(
        made.work,
        hardware.mode,
        SEVERAL,
        depth=made.depth,
        batch=batch,
        arithmetic=arithmetic,
    ).value
    return msgspec.structs.replace(made, batch=batch, decode_tok_s=1e3 * batch / step)


@pytest.fixture(scope="module")
def single() -> list[Observation]:
    """Rows of one sequence on three devices."""
    return [item for hardware in BOXES for item in sample(hardware)]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Steps of four and eight sequences with unpacked weights, and with native ones."""
    return [
        step_of(hardware, model, arithmetic, batch)
        for hardware in BOXES
        for model in DENSE
        for arithmetic in (WEIGHT_ONLY, "nvfp4")
        for batch in (4, 8)
    ]


def test_what_one_sequence_costs_is_not_fitted_again(
    single: list[Observation], rows: list[Row]
) -> None:
    fit = Fit(single)
    for item in batches.batch_observations(rows, fit):
        how = batches.shared_coefficients(fit, keys_of(item.row))
        alone = sum(
            cost.decode_parts(
                item.row.work,
                item.row.hardware.mode,
                how,
                depth=item.row.depth,
                batch=item.row.batch,
                arithmetic=item.row.arithmetic,
            ).values()
        )
        assert item.kind == "batch"
        assert item.costs[0] == pytest.approx(alone)
        assert item.costs[4] == 0  # its rate does not include prompts
        # One of the two: vectors for unpacked weights, otherwise matrices.
        assert (item.costs[2] > 0) == (item.row.arithmetic == WEIGHT_ONLY)
        assert (item.costs[3] > 0) == (item.row.arithmetic != WEIGHT_ONLY)


def test_rates_with_prompts_have_a_part_of_all_of_them(single: list[Observation]) -> None:
    made = step_of(BOXES[1], DENSE[0], WEIGHT_ONLY, 8)
    with_prompts = msgspec.structs.replace(made, includes_prompt=True)
    twice = msgspec.structs.replace(with_prompts, output=2 * made.output)
    first, second = batches.batch_observations([with_prompts, twice], Fit(single))
    assert first.costs[4] == pytest.approx(2 * second.costs[4])


def test_factors_are_found(single: list[Observation], rows: list[Row]) -> None:
    fit = Fit(single)
    several = batches.fit_batches(rows, fit)
    found = several.factors(keys_of(rows[0]))
    assert found["batch_vector"] == pytest.approx(SEVERAL.batch_vector, rel=0.2)
    assert found["step"] == pytest.approx(1, rel=0.03)
    for item in batches.batch_observations(rows, fit):
        assert several.predict_ms(item) == pytest.approx(item.measured_ms, rel=0.06)


def test_devices_and_models_are_left_out(single: list[Observation], rows: list[Row]) -> None:
    for left_out in (batches.leave_devices_out, batches.leave_models_out):
        predictions = left_out(rows, single)
        assert len(predictions) == len(rows)
        assert sorted(one.observation.measured_ms for one in predictions) == pytest.approx(
            sorted(one.decode_ms or 0 for one in rows)
        )


def test_one_device_alone_cannot_be_predicted_from_others(single: list[Observation]) -> None:
    own = [step_of(BOXES[0], model, WEIGHT_ONLY, 8) for model in DENSE]
    assert batches.leave_devices_out(own, single) == []
    assert batches.leave_devices_out([], single) == batches.leave_models_out([], single) == []
