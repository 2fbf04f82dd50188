"""Records of a plan: rates, totals, the table for people."""

from typing import Any

import msgspec
import pytest

from edgelm.planning import Estimate, Plan, PlanRequest, short

PLAN = Plan(
    target="toaster",
    engine="onnxruntime",
    dialect="ort",
    power_mode="brown",
    precision="int4",
    kv="int8",
    context=8192,
    prompt=512,
    batch=1,
    parameters=134_515_008,
    weight_bytes=80_000_000,
    packed_bytes=40_000_000,
    kv_bytes=50_000_000,
    workspace_bytes=10_000_000,
    runtime_bytes=75_000_000,
    build_bytes=1_230_000_000,
    build_segments=3,
    build_room_bytes=1_500_000_000,
    budget_bytes=200_000_000,
    prefill_ms=Estimate(250, 125, 1234.5),
    decode_ms=Estimate(25, 12.5, 50),
    joules_per_token=Estimate(0.5, 0.25, 1),
    binds="memory bandwidth",
    fits=False,
    fast_enough=False,
    basis="12 toasts",
    missing=("55.0 MB of memory", "speed: 40 tokens/s predicted, 50 required"),
    advice=("--context 4096",),
)


def plan(**over: Any) -> Plan:
    return msgspec.structs.replace(PLAN, **over)


def test_a_rate_turns_the_range_around() -> None:
    assert Estimate(10, 5, 20).per_second() == Estimate(100, 50, 200)
    assert Estimate(10, 5, 20).per_second(3) == Estimate(300, 150, 600)


def test_total_and_rate_by_hand() -> None:
    assert PLAN.total_bytes == 255_000_000
    assert PLAN.tokens_per_second == Estimate(40, 20, 80)
    assert plan(batch=4).tokens_per_second == Estimate(160, 80, 320)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("room", [0, 1_230_000_000, 1_229_999_999])
def test_it_works_if_it_fits_builds_and_is_fast_enough(fits: bool, fast: bool, room: int) -> None:
    planned = plan(fits=fits, fast_enough=fast, build_room_bytes=room)
    assert planned.builds == (room != 1_229_999_999)
    assert planned.works == (fits and fast and planned.builds)
    assert not msgspec.structs.replace(planned, unsupported="too old").works


@pytest.mark.parametrize(
    ("required", "speed", "verdict"),
    [
        (None, "fast enough", "fits"),
        (20, "fast enough", "fits"),
        (21, "probably fast enough", "fits, probably fast enough"),
        (40, "probably fast enough", "fits, probably fast enough"),
        (41, "probably too slow", "probably too slow"),
        (80, "probably too slow", "probably too slow"),
        (81, "too slow", "too slow"),
    ],
)
def test_a_required_speed_is_judged_with_the_range(
    required: float | None, speed: str, verdict: str
) -> None:
    fast = required is None or required <= 40
    planned = plan(fits=True, fast_enough=fast, required_tokens_per_second=required)
    assert (planned.speed, planned.verdict) == (speed, verdict)


def test_verdicts_of_what_cannot_run() -> None:
    assert plan(unsupported="too old").verdict == "does not run there"
    assert plan(fits=True, build_room_bytes=1).verdict == "cannot be built there"
    assert plan().verdict == "does not fit"


def test_first_token_of_a_batch_is_that_of_all_its_prompts() -> None:
    assert "ms, 4 prompts of 512 tokens each" in plan(batch=4).table()


def test_what_is_not_compiled_is_only_exported() -> None:
    planned = plan(build_bytes=0, build_room_bytes=0, export_bytes=2_000_000_000)
    assert "to export       2.00 GB\n" in planned.table()
    assert "to build" not in planned.table()


def test_table_of_what_does_not_work() -> None:
    assert PLAN.table() == (
        "target          toaster, brown (onnxruntime, ort dialect)\n"
        "precision       int4, int8 cache, context 8,192\n"
        "parameters      134.5 M\n"
        "weights         80.0 MB\n"
        "packing         40.0 MB\n"
        "KV cache        50.0 MB\n"
        "workspace       10.0 MB\n"
        "runtime         75.0 MB\n"
        "total           255.0 MB of 200.0 MB\n"
        "to build        1.23 GB of 1.50 GB, in 3 segments\n"
        "first token     250 (125 to 1,234) ms, prompt of 512 tokens\n"
        "decode          40 (20 to 80) tokens/s, if it fit\n"
        "energy          0.5 (0.25 to 1) J per token\n"
        "verdict         does not fit\n"
        "missing         55.0 MB of memory\n"
        "missing         speed: 40 tokens/s predicted, 50 required\n"
        "try             --context 4096\n"
        "Estimates from 12 toasts; the range holds 80% of measurements."
    )


def test_table_of_what_works_is_shorter() -> None:
    works = {"fits": True, "fast_enough": True, "missing": (), "advice": ()}
    fine = plan(**works, packed_bytes=0, joules_per_token=None, binds="memory bandwidth")
    names = [line[:15].strip() for line in fine.table().splitlines()[:-1]]
    assert names == [
        *("target", "precision", "parameters", "weights", "KV cache", "workspace", "runtime"),
        *("total", "to build", "first token", "decode", "verdict"),
    ]
    assert "decode          40 (20 to 80) tokens/s, bound by memory bandwidth\n" in fine.table()


def test_power_that_is_not_published() -> None:
    table = plan(engine="tensorrt", power_mode="MAXN", joules_per_token=None).table()
    assert "energy          not known: no power limit is published for MAXN\n" in table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (0.5, "0.5"),
        (9.999, "10"),
        (40.06, "40.1"),
        (99.96, "100"),
        (999.7, "1,000"),
        (123_456_789.0, "123,456,789"),
    ],
)
def test_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert short(value) == text


def test_table_of_large_figures_has_no_exponents() -> None:
    slow = plan(prefill_ms=Estimate(3_456_789, 2e6, 7e6), decode_ms=Estimate(1e-3, 5e-4, 2e-3))
    table = slow.table()
    assert "3,456,789 (2,000,000 to 7,000,000) ms, prompt" in table
    assert "1,000,000 (500,000 to 2,000,000) tokens/s" in table


@pytest.mark.parametrize("joules", [None, Estimate(0.5, 0.25, 1)])
def test_a_plan_survives_json(joules: Estimate | None) -> None:
    before = plan(joules_per_token=joules)
    assert msgspec.json.decode(msgspec.json.encode(before), type=Plan) == before


def test_a_request_survives_json() -> None:
    request = PlanRequest("int4", "int8", 4096, batch=2, min_tokens_per_second=2.5)
    assert msgspec.json.decode(msgspec.json.encode(request), type=PlanRequest) == request
    assert msgspec.json.decode("{}", type=PlanRequest) == PlanRequest()
