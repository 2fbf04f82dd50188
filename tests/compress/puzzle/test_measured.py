"""Measured costs: what is timed, and that a choice follows the times."""

import pytest

from edgelm.compress.puzzle.alternatives import Alternative, alternatives
from edgelm.compress.puzzle.choose import choose
from edgelm.compress.puzzle.costs import PuzzleCosts
from edgelm.compress.puzzle.measured import MeasuredTimes, check_measurable, measured_run
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.search.settings import Budget
from edgelm.devices.calibration.halves import HalfTimes
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config

pytest.importorskip("scipy")

SPEC = DecoderSpec.from_hf(tiny_config("qwen3").to_dict())
FOUND = alternatives(SPEC, PuzzleSettings(mlp_ratios=(0.5, 0.0), kv_heads=(1,)), 1)
CPU = load_profile("cpu")
REQUEST = PlanRequest(precision="int8")
TIMES = MeasuredTimes(
    "a processor",
    2,
    100.0,
    {
        "attention 4/2 of 16": HalfTimes(1.0, 20.0),
        "attention 2/1 of 16": HalfTimes(0.9, 10.0),
        "MLP 96": HalfTimes(0.5, 40.0),
        "MLP 48": HalfTimes(0.2, 15.0),
        "head 128": HalfTimes(2.0, 2.0),
    },
)
SCORES = [
    0.5 if one.leaves_out_attention else 0.1 if one.half == "attention" else 0.2 * (96 - one.size)
    for one in FOUND
]


def costs(rate: float | None = None, first: float | None = None) -> PuzzleCosts:
    request = PlanRequest(precision="int8", min_tokens_per_second=rate)
    return PuzzleCosts(SPEC, CPU, Budget(None, first, request), TIMES)


def test_every_kind_of_half_is_measured_once() -> None:
    run = measured_run(
        SPEC, FOUND, CPU, PuzzleCosts(SPEC, CPU, Budget(None, None, REQUEST)).plan(())
    )
    assert set(run.shapes) == set(TIMES.kinds)
    assert (run.precision, run.kv) == ("int8", "int8")
    assert (run.passes.depth, run.passes.prompt, run.passes.chunk) == (128, 128, 128)
    fewer = run.shapes["attention 2/1 of 16"]
    assert (fewer.heads, fewer.kv_heads, fewer.head_dim, fewer.normed) == (2, 1, 16, True)
    windowed = DecoderSpec.from_hf(tiny_config("qwen2-window").to_dict())
    names = measured_run(windowed, [], CPU, costs().plan(())).shapes
    assert {"attention 4/2 of 16", "attention 4/2 of 16, window 8"} <= set(names)


def test_times_are_sums_over_halves_and_head() -> None:
    plan = costs().plan(())
    assert plan.decode_ms.value == pytest.approx(4 * 1.5 + 2.0 + 0.1)
    assert plan.prefill_ms.value == pytest.approx(4 * 60 + 2.0 + 0.1)
    assert plan.basis == "layers timed on a processor"
    chosen = [Alternative(0, "attention"), Alternative(1, "attention", 1), Alternative(2, "mlp")]
    assert costs().plan(chosen).decode_ms.value == pytest.approx(8.1 - 1.0 - 0.1 - 0.5)
    planner = PuzzleCosts(SPEC, CPU, Budget(None, None, REQUEST)).plan(chosen)
    assert costs().plan(chosen).total_bytes == planner.total_bytes, "memory is the planner's"


def test_the_choice_follows_the_times() -> None:
    """One layer without attention saves 1 ms; heads save most of a prompt for least."""
    without = choose(costs(rate=1e3 / 7.2), FOUND, SCORES)
    assert [(one.half, one.size) for one in without] == [("attention", 0)]
    fewer = choose(costs(first=242.1 - 40), FOUND, SCORES)
    assert [(one.half, one.size) for one in fewer] == [("attention", 1)] * 4
    assert costs(rate=1e3 / 8.2).missing(()) == []
    assert costs(rate=1e3 / 8.0).missing(()) == ["speed: 123.5 tokens/s measured, 125.0 required"]


def test_what_no_student_reaches() -> None:
    with pytest.raises(DoesNotFit, match=r"smallest exceeds: speed: .* tokens/s measured, 1000"):
        costs(rate=1000).check_possible(FOUND)
    costs(rate=1000).untimed().check_possible(FOUND)


@pytest.mark.parametrize(
    ("family", "target", "precision", "message"),
    [
        (
            "qwen3",
            "jetson-orin-nano-8gb",
            "int8",
            r"\[target\] is jetson-orin-nano-8gb with tensor",
        ),
        (
            "qwen3",
            "cpu",
            "auto",
            "precision is auto, which has no kernels of its own; set it to fp",
        ),
        ("qwen3.5", "cpu", "int8", "layers of qwen3_5_text have parts for which there is no meas"),
    ],
)
def test_refusals(family: str, target: str, precision: str, message: str) -> None:
    spec = DecoderSpec.from_hf(tiny_config(family).to_dict())
    with pytest.raises(BadInput, match=message):
        check_measurable(spec, load_profile(target), PlanRequest(precision=precision))
