"""The terms of the fit are the cost model: with true coefficients they give its times exactly."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published.rows import Row
from edgelm.devices.published.terms import TERMS, observations
from edgelm.devices.published.times import times_of
from tests.devices.published.synthetic import (
    TRUE,
    box,
    factors,
    measured,
    row,
    true_decode_ms,
    true_prefill_ms,
)

_OTHER = Coefficients(
    bandwidth=0.613,
    cache_bandwidth=0.613,
    compute=0.071,
    attention=0.9,
    layer_us=3.3,
    unpack=0.21,
    prompt_layers=0.4,
    recurrent_us=812.0,
)
_ROWS: dict[str, Callable[[], Row]] = {
    "dense": row,
    "16-bit": lambda: row(bits=16, arithmetic="fp16"),
    "nvfp4": lambda: row(arithmetic="nvfp4"),
    "long": lambda: row(prompt=9000.0, output=3000.0),
    "windows": lambda: row("gemma-3-4b", prompt=4096.0),
    "experts": lambda: row("qwen3-30b-a3b"),
    "recurrent": lambda: row("Qwen3.5-4B"),
    "recurrent-experts": lambda: row("Qwen3.5-35B-A3B"),
    "no-clock": lambda: row("Qwen3.5-4B", box(clock_ghz=None)),
    "includes-prompt": lambda: row("Qwen3.5-4B", includes_prompt=True, prompt=2048.0),
}

_PROMPT_ONLY = {"prompt_layers", "matrices", "attention", "recurrence"}


def test_every_term_is_a_factor() -> None:
    assert tuple(factors(TRUE)) == TERMS


def test_every_coefficient_that_is_not_fitted_costs_nothing() -> None:
    fitted = {"bandwidth", "cache_bandwidth", "compute", "attention", "unpack", "recurrent_us"}
    fitted |= {"layer_us", "prompt_layers"}
    several = {"batch_layer_us", "batch_vector", "batch_matrix"}
    described = {"decode_band", "batch_band", "prefill_band", "source"}
    # Of a profile that was measured on the device; published rows cannot tell it from layers.
    left = set(Coefficients.__struct_fields__) - fitted - described
    assert left == {"step_us", *several}
    assert all(getattr(TRUE, name) == 0 for name in left)


@pytest.mark.parametrize("how", [TRUE, _OTHER], ids=["usual", "unusual"])
@pytest.mark.parametrize("make", _ROWS.values(), ids=_ROWS)
def test_costs_times_true_factors_are_the_cost_models_times(
    make: Callable[[], Row], how: Coefficients
) -> None:
    one = measured(make(), how)
    seen = observations((one,))
    exact = np.array([[factors(how)[term] for term in TERMS]] * len(seen))
    totals, slopes = times_of(seen, TERMS)(exact)
    times = {item.kind: total for item, total in zip(seen, totals, strict=True)}
    # The slopes are the derivatives.
    for term in range(len(TERMS)):
        more = exact.copy()
        more[:, term] *= 1 + 1e-6
        change = (times_of(seen, TERMS)(more)[0] - totals) / 1e-6
        assert slopes[:, term] == pytest.approx(change, rel=1e-3, abs=1e-6)
    assert times == {
        "decode": pytest.approx(true_decode_ms(one, how), rel=1e-9),
        "prefill": pytest.approx(true_prefill_ms(one, how), rel=1e-9),
    }
    measurements = {item.kind: item.measured_ms for item in observations((one,))}
    assert times == pytest.approx(measurements, rel=1e-9)


def test_only_what_is_stated_is_observed() -> None:
    rows = (row(decode_tok_s=20.0), row(prefill_tok_s=1000.0), row())
    seen = observations(rows)
    assert [(item.row, item.kind) for item in seen] == [(rows[0], "decode"), (rows[1], "prefill")]
    assert [item.measured_ms for item in seen] == [50.0, 512.0]


@pytest.mark.parametrize(
    ("one", "kind", "without"),
    [
        (row(), "decode", _PROMPT_ONLY),
        (row(), "prefill", {"unpack", "layers", "recurrence"}),
        (row(includes_prompt=True), "decode", {"recurrence"}),
        (row("Qwen3.5-4B"), "prefill", {"unpack", "layers"}),
        (row(hardware=box(sm_count=None)), "decode", {"unpack", *_PROMPT_ONLY}),
    ],
    ids=["decode", "prefill", "both", "recurrent", "no-clock"],
)
def test_terms_that_a_time_has_no_part_in_cost_nothing(
    one: Row, kind: str, without: set[str]
) -> None:
    (item,) = (item for item in observations((measured(one, TRUE),)) if item.kind == kind)
    costs = dict(zip(TERMS, item.costs, strict=True))
    assert {term for term in costs if costs[term] == 0} == without
    assert min(item.costs) >= 0


def test_prompt_shared_by_more_tokens_costs_each_less() -> None:
    short = row(includes_prompt=True, output=10.0)
    long = msgspec.structs.replace(short, output=1000.0)
    first, second = (
        dict(zip(TERMS, observations((measured(one, TRUE),))[0].costs, strict=True))
        for one in (short, long)
    )
    assert first["matrices"] == pytest.approx(100 * second["matrices"])
    assert first["layers"] == second["layers"]
