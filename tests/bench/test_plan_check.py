"""The planner beside measurements: two tiny decoders for real, and the arithmetic by hand."""

import msgspec
import pytest

from edgelm.bench.machine import Machine
from edgelm.bench.plan_check import Check, Checked, check_plan, check_table
from edgelm.bench.random_model import RandomShape
from edgelm.devices.profile import load_profile
from edgelm.planning import Estimate, Plan

MACHINE = Machine("a processor", 2, 2, 8 * 2**30, "Linux", "3.11", 40.0)
TINY = (
    RandomShape(2, 64, 128, 2, 1, 512, "fp32", "fp32"),
    RandomShape(2, 64, 128, 2, 1, 512, "int8", "int8"),
)


def checked(planned: float, measured: float) -> Checked:
    estimate = Estimate(planned, planned / 2, planned * 2)
    plan = Plan(
        target="cpu",
        engine="onnxruntime",
        dialect="ort",
        power_mode="default",
        precision="int4",
        kv="int8",
        context=64,
        prompt=32,
        batch=1,
        parameters=1000,
        weight_bytes=600,
        packed_bytes=100,
        kv_bytes=100,
        workspace_bytes=100,
        runtime_bytes=100,
        build_bytes=1,
        budget_bytes=2000,
        prefill_ms=estimate,
        decode_ms=estimate,
        joules_per_token=None,
        binds="memory bandwidth",
        fits=True,
        fast_enough=True,
        basis="hand",
    )
    return Checked(f"shape {planned:g}", 1000, plan, measured, 2 * planned, 900)


def test_errors_and_rank_by_hand() -> None:
    check = Check(MACHINE, "hand", 1, (checked(1, 1.1), checked(2, 1.8), checked(4, 8)))
    assert check.shapes[0].errors == pytest.approx({"decode": 0.1, "prefill": 1.0, "memory": -0.1})
    assert check.median_error("decode") == pytest.approx(0.1)
    assert check.rank_correlation == pytest.approx(1)
    swapped = Check(MACHINE, "hand", 1, (checked(1, 3), checked(2, 2), checked(4, 1)))
    assert swapped.rank_correlation == pytest.approx(-1)


def test_table_says_what_was_planned_and_measured() -> None:
    text = check_table(Check(MACHINE, "hand", 3, (checked(1, 1.1), checked(2, 1.8))))
    assert "| shape 1 | 0 M | int8 | 1.00, 1.10 | 1, 2 | 0, 0 |" in text
    assert "Rank correlation of decode times 1.000; median errors: decode 10.0%" in text


@pytest.mark.slow
def test_two_shapes_for_real() -> None:
    lines: list[str] = []
    check = check_plan(
        load_profile("cpu"), MACHINE, rounds=1, threads=1, progress=lines.append, shapes=TINY
    )
    assert [one.name for one in check.shapes] == ["2x64x128 fp32", "2x64x128 int8"]
    for one in check.shapes:
        assert one.decode_ms > 0
        assert one.prefill_ms > one.decode_ms
        assert one.peak_bytes > 30_000_000
    assert len(lines) == 4
    again = msgspec.json.decode(msgspec.json.encode(check), type=Check)
    assert again == check
