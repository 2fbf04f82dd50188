"""How predictions are validated: nothing is predicted from itself, ranges hold, scores by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edgelm.devices.published import validation
from edgelm.devices.published.fit import Fit
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import (
    Prediction,
    Ranges,
    Score,
    leave_models_out,
    leave_one_device_out,
    ranges,
    scores,
)
from tests.devices.published.synthetic import DENSE, box, row, sample

_BOXES = [
    box("small", bandwidth_gb_s=70, fp16_tflops=10),
    box("module", bandwidth_gb_s=100, fp16_tflops=20),
    box("module-super", bandwidth_gb_s=150, fp16_tflops=30),
    box("large", bandwidth_gb_s=500, fp16_tflops=90),
]


def observed(*, slow: str = "", slower: float = 1.0) -> list[Observation]:
    """Times of four devices, of which one may be slower than its speeds say."""
    return [
        item
        for hardware in _BOXES
        for item in sample(hardware, slower=slower if hardware.name == slow else 1.0)
    ]


class Spy:
    """A fit that remembers what it was given and predicts a millisecond."""

    def __init__(self, seen: Sequence[Observation]) -> None:
        self.families = {item.row.hardware.family for item in seen}
        self.models = {item.row.model.name for item in seen}
        self.times = len(seen)
        self.predicted: list[Observation] = []
        spies.append(self)

    def predict_ms(self, item: Observation) -> float:
        self.predicted.append(item)
        return 1.0


spies: list[Spy] = []


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Spy]:
    spies.clear()
    monkeypatch.setattr(validation, "Fit", Spy)
    return spies


def test_a_device_is_predicted_from_all_others_and_no_other_configuration_of_it(
    spied: list[Spy],
) -> None:
    seen = observed()
    predictions = leave_one_device_out(seen)
    assert len(spied) == 3
    for spy in spied:
        (left_out,) = {item.row.hardware.family for item in spy.predicted}
        assert spy.families == {"small", "module", "large"} - {left_out}
        assert spy.times + len(spy.predicted) == len(seen)
    assert sorted(map(id, seen)) == sorted(id(one.observation) for one in predictions)


def test_a_model_is_predicted_from_other_models(spied: list[Spy]) -> None:
    seen = observed()
    predictions = leave_models_out(seen)
    assert len(spied) == len(DENSE)
    for spy in spied:
        assert spy.models.isdisjoint(item.row.model.name for item in spy.predicted)
        assert spy.families == {"small", "module", "large"}
    assert sorted(map(id, seen)) == sorted(id(one.observation) for one in predictions)


def test_a_devices_own_times_do_not_reach_its_prediction() -> None:
    honest = leave_one_device_out(observed())
    tenfold = leave_one_device_out(observed(slow="large", slower=10.0))
    for one, other in zip(honest, tenfold, strict=True):
        if one.observation.row.hardware.name == "large":
            assert other.predicted_ms == one.predicted_ms
            assert other.error == pytest.approx(one.error + math.log(10))
        else:
            assert other.predicted_ms != one.predicted_ms


def test_a_model_that_was_seen_elsewhere_keeps_its_device() -> None:
    """A slow device is known as slow when only the model is left out."""
    slow = observed(slow="large", slower=1.3)
    unseen, familiar = leave_one_device_out(slow), leave_models_out(slow)

    def worst(predictions: list[Prediction]) -> float:
        chosen = [one for one in predictions if one.observation.row.hardware.name == "large"]
        return float(np.median([one.relative for one in chosen]))

    assert worst(familiar) < 0.6 * worst(unseen)


def prediction(
    ratio: float,
    *,
    kind: str = "decode",
    crowd: bool = False,
    engine: str = "vllm",
    model: str = "llama-3.1-8b",
) -> Prediction:
    """A time that took `ratio` times what was predicted."""
    item = Observation(row(model, engine=engine, crowd=crowd), kind, 20.0 * ratio, ())
    return Prediction(item, 20.0)


def test_error_and_relative_by_hand() -> None:
    # 25 ms where 20 were predicted: 40 tokens/s in place of 50, a quarter too many.
    slow = prediction(1.25)
    assert slow.error == pytest.approx(math.log(1.25))
    assert slow.relative == pytest.approx(50 / 40 - 1)
    fast = prediction(0.8)
    assert fast.error == pytest.approx(-math.log(1.25))
    assert fast.relative == pytest.approx(1 - 40 / 50)


def test_scores_by_hand() -> None:
    predictions = [
        *(prediction(ratio) for ratio in (1.1, 0.8, 1.5, 3.0, 1.0)),
        *(prediction(ratio, crowd=True) for ratio in (1.4, 0.5)),
        prediction(1.9, kind="prefill"),
    ]
    wide = Ranges({("decode", ""): math.log(1.6), ("prefill", ""): math.log(1.2)})
    found = scores(predictions, wide)
    assert [(one.kind, one.crowd, one.rows) for one in found] == [
        ("decode", False, 5),
        ("decode", True, 2),
        ("prefill", False, 1),
    ]
    # Relative errors 0, 0.1, 0.2, 0.5, 2: the third. 0.4, 0.5: the smaller of two.
    assert [one.median for one in found] == pytest.approx([0.2, 0.4, 0.9])
    # All but 3.0 are within a factor of 1.6; 0.5 is a factor of 2; 1.9 is more than 1.2.
    assert [one.inside for one in found] == [0.8, 0.5, 0.0]


def test_no_predictions_no_scores() -> None:
    assert scores([], Ranges({})) == []


@pytest.mark.parametrize(
    ("kind", "crowd", "title"),
    [
        ("decode", False, "decode, vendor-published and independent"),
        ("prefill", True, "prefill, crowd-sourced"),
    ],
)
def test_title(kind: str, crowd: bool, title: str) -> None:
    assert Score(kind, crowd, 1, 0.1, 1.0).title == title


def test_width_is_the_engines_then_all_then_a_factor_of_two() -> None:
    some = Ranges({("decode", ""): 0.3, ("decode", "vllm"): 0.1})
    assert some.width("decode", "vllm") == 0.1
    assert some.width("decode", "mlc") == 0.3
    assert some.width("prefill", "vllm") == pytest.approx(math.log(2))
    assert some.band(prediction(1.0, engine="mlc").observation) == 0.3


def test_range_is_the_smallest_that_holds_92_of_100() -> None:
    # Errors of 1% to 20%, to both sides in turn: the 19th holds 92%.
    errors = [0.01 * (n + 1) * (-1) ** n for n in range(20)]
    found = ranges([prediction(math.exp(error)) for error in errors])
    assert found.widths == {
        ("decode", ""): pytest.approx(0.19),
        ("decode", "vllm"): pytest.approx(0.19),
    }


def test_an_engine_of_few_rows_has_the_range_of_all() -> None:
    many = [prediction(math.exp(0.1)) for _ in range(100)]
    few = [prediction(math.exp(0.5), engine="mlc") for _ in range(19)]
    assert set(ranges(many + few).widths) == {("decode", ""), ("decode", "vllm")}
    assert ranges(many + few).width("decode", "mlc") == pytest.approx(0.5)
    enough = ranges([*many, *few, prediction(math.exp(0.4), engine="mlc")])
    assert enough.widths["decode", "mlc"] == pytest.approx(0.5)
    assert enough.widths["decode", "vllm"] == pytest.approx(0.1)


def test_ranges_are_at_least_those_of_others() -> None:
    known = Ranges({("decode", ""): 0.2, ("decode", "vllm"): 0.5, ("prefill", ""): 0.1})
    new = Ranges({("decode", ""): 0.3, ("decode", "mlc"): 0.1, ("prefill", ""): 0.4})
    assert new.at_least(known).widths == {
        ("decode", ""): 0.3,
        ("decode", "mlc"): 0.2,  # the others' width of any engine
        ("decode", "vllm"): 0.5,
        ("prefill", ""): 0.4,
    }


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_ranges_hold_what_they_promise_of_new_normal_errors(spread: float) -> None:
    generator = np.random.default_rng(7)
    old, new = (
        [prediction(math.exp(error)) for error in generator.normal(0, spread, 2000)]
        for _ in range(2)
    )
    found = ranges(old)
    # 94% of a normal distribution are within 1.88 standard deviations.
    assert found.width("decode", "vllm") == pytest.approx(1.88 * spread, rel=0.06)
    (score,) = scores(new, found)
    assert 0.92 < score.inside < 0.96


def test_left_out_predictions_are_those_of_a_fit_without_them() -> None:
    seen = observed()
    fit = Fit([item for item in seen if item.row.hardware.name != "small"])
    for one in leave_one_device_out(seen):
        if one.observation.row.hardware.name == "small":
            assert one.predicted_ms == fit.predict_ms(one.observation)


def test_predictions_are_in_the_order_of_devices() -> None:
    seen = observed()
    names = [one.observation.row.hardware.family for one in leave_one_device_out(seen)]
    assert names == sorted(names)


def test_mixtures_have_at_least_the_range_of_all_mixtures() -> None:
    some = Ranges({("decode", "vllm"): 0.1, ("decode", "mixtures"): 0.4})
    mixture = prediction(1.0, model="qwen3-30b-a3b").observation
    assert some.band(mixture) == 0.4
    assert some.band(prediction(1.0).observation) == 0.1
    assert some.widest("decode") == 0.1
