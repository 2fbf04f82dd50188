"""The cost model, worked by hand with round numbers, and the directions in which it moves."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY, Coefficients
from edgelm.devices.planner.cost_model.work import Cache, Work
from edgelm.devices.profile_tables import Figure, PowerMode
from edgelm.planning import Estimate


def figure(value: float) -> Figure:
    return Figure(value, "hand")


MODE = PowerMode(
    name="default",
    bandwidth_gb_s=figure(100),  # 1e8 bytes a millisecond
    dense_tflops={"fp16": figure(10), "int8": figure(20)},  # 1e10 operations a millisecond
    clock_ghz=figure(1),
    sm_count=figure(4),
    watts=figure(10),
)
HOW = Coefficients(
    bandwidth=0.5,
    cache_bandwidth=0.25,
    compute=0.5,
    attention=0.1,
    layer_us=100,
    prompt_layers=2,
    decode_band=(0.8, 1.5),
    prefill_band=(0.5, 3.0),
)
# A billion parameters of four bits, a head of 16 bits, 100 kB of cache a token.
WORK = Work(
    layers=10,
    linear_parameters=1e9,
    head_parameters=1e8,
    linear_bytes=5e8,
    head_bytes=2e8,
    resident_bytes=7e8,
    caches=(Cache(1e5),),
    attention_width=4e4,
    attention_layers=10,
)


def mode(**over: Any) -> PowerMode:
    return msgspec.structs.replace(MODE, **over)


def how(**over: Any) -> Coefficients:
    return msgspec.structs.replace(HOW, **over)


def decoded(mode: PowerMode = MODE, how: Coefficients = HOW, work: Work = WORK, **of: Any) -> float:
    return cost.decode_ms(work, mode, how, **{"depth": 1000} | of).value


def prompted(mode: PowerMode = MODE, work: Work = WORK, tokens: float = 1000) -> float:
    return cost.prefill_ms(work, mode, HOW, tokens=tokens, arithmetic="fp16").value


def test_decode_by_hand() -> None:
    parts = cost.decode_parts(WORK, MODE, HOW, depth=1000)
    # 7e8 bytes at half of the bandwidth, 1e8 at a quarter of it, ten layers of 100 us.
    assert parts == pytest.approx({"weights": 14, "cache": 4, "layers": 1})
    step = cost.decode_ms(WORK, MODE, HOW, depth=1000)
    assert step.value == pytest.approx(19)
    assert (step.low, step.high) == pytest.approx((0.8 * 19, 1.5 * 19))


def test_bandwidth_that_no_kernel_reaches_is_not_counted_on() -> None:
    bandwidth = MODE.bandwidth_gb_s.value
    slow = mode(measured_gb_s=Figure(0.47 * bandwidth, "a", "measured"))  # half of the usual share
    half = mode(bandwidth_gb_s=Figure(bandwidth / 2, "a"))
    assert decoded(slow) == pytest.approx(decoded(half))
    assert prompted(slow) == pytest.approx(prompted(half))
    assert prompted(slow) > prompted()


def test_a_step_costs_something_whatever_the_model() -> None:
    parts = cost.decode_parts(WORK, MODE, how(step_us=500), depth=1000)
    assert parts == pytest.approx({"weights": 14, "cache": 4, "layers": 1.5})


def test_a_batch_shares_the_weights_but_not_the_caches() -> None:
    parts = cost.decode_parts(WORK, MODE, HOW, depth=1000, batch=3)
    assert parts == pytest.approx({"weights": 14, "cache": 12, "layers": 1, "batch": 0})


def test_further_sequences_cost_layers_and_products() -> None:
    # Two more of them, in each of the layers.
    of_layers = cost.batch_parts(
        WORK, MODE, how(batch_layer_us=50), batch=3, arithmetic=cost.WEIGHT_ONLY
    )
    assert of_layers == pytest.approx({"layers": 2 * WORK.layers * 0.05, "vector": 0, "matrix": 0})
    products = 2 * 2 * (WORK.linear_parameters + WORK.head_parameters)
    # Vector instructions: 256 operations in each of 4e6 cycles a millisecond.
    unpacked = cost.batch_parts(
        WORK, MODE, how(batch_vector=1.5), batch=3, arithmetic=cost.WEIGHT_ONLY
    )
    assert unpacked["vector"] == pytest.approx(1.5 * products / (256 * 4e6))
    native = cost.batch_parts(WORK, MODE, how(batch_matrix=3), batch=3, arithmetic="fp16")
    peak = cost.peak_tflops(MODE, "fp16") * 1e9
    assert native["matrix"] == pytest.approx(3 * products / peak)


def test_a_batch_has_a_range_of_its_own() -> None:
    one = msgspec.structs.replace(HOW, batch_band=(0.25, 4.0))
    alone, four = (cost.decode_ms(WORK, MODE, one, depth=10, batch=n) for n in (1, 4))
    assert alone.low == pytest.approx(0.8 * alone.value)
    assert (four.low, four.high) == pytest.approx((0.25 * four.value, 4 * four.value))


def test_what_takes_most_of_a_step() -> None:
    parts = {"weights": 3.0, "cache": 1.0, "layers": 2.0}
    assert cost.bottleneck(parts) == "memory bandwidth"
    assert cost.bottleneck(parts | {"layers": 5.0}) == "per-layer overhead"
    assert cost.bottleneck(parts | {"batch": 5.0}) == "the sequences of the batch"


def test_a_batch_touches_more_experts() -> None:
    experts = msgspec.structs.replace(WORK, active_experts=1, experts=4, expert_bytes=16e8)
    one = cost.decode_parts(experts, MODE, HOW, depth=0)["weights"]
    two = cost.decode_parts(experts, MODE, HOW, depth=0, batch=2)["weights"]
    # 3e8 bytes are no experts'; one token reads 4e8 of theirs, two read 7e8.
    assert (one, two) == pytest.approx((14, 20))


def test_unpacking_by_hand() -> None:
    # 7e8 bytes at 0.08 cycles; four multiprocessors at 1 GHz do 4e6 cycles a millisecond. Reading
    # takes 14 ms at the same time.
    parts = cost.decode_parts(WORK, MODE, how(unpack=0.08), depth=1000)
    assert parts["weights"] == pytest.approx(2**0.25 * 14)
    slow = cost.decode_parts(WORK, MODE, how(unpack=0.8), depth=1000)
    assert slow["weights"] == pytest.approx(140, rel=1e-3)
    unclocked = cost.decode_parts(WORK, mode(clock_ghz=None), how(unpack=0.08), depth=1000)
    assert unclocked["weights"] == pytest.approx(14)


def test_prefill_by_hand() -> None:
    parts = cost.prefill_parts(WORK, MODE, HOW, tokens=1000, arithmetic="fp16")
    expected = {
        "matrices": 2 * (1e9 * 1000 + 1e8) / 1e10 / 0.5,  # the head only for the last token
        "attention": 4 * (1000 * 1000 / 2 * 4e4) / 1e10 / 0.1,
        "weights": 14,
        "recurrence": 0,
        "layers": 10 * 0.1 * 2,
    }
    assert parts == pytest.approx(expected)
    first = cost.prefill_ms(WORK, MODE, HOW, tokens=1000, arithmetic="fp16")
    assert first.value == pytest.approx(496.04)
    assert (first.low, first.high) == pytest.approx((0.5 * 496.04, 3 * 496.04))


def test_attention_stays_in_16_bits() -> None:
    wide = cost.prefill_parts(WORK, MODE, HOW, tokens=1000, arithmetic="fp16")
    narrow = cost.prefill_parts(WORK, MODE, HOW, tokens=1000, arithmetic="int8")
    assert narrow["matrices"] == pytest.approx(wide["matrices"] / 2)
    assert narrow["attention"] == wide["attention"]


def test_recurrence_by_hand() -> None:
    work = msgspec.structs.replace(WORK, recurrent_layers=5)
    # Five layers of 1000 tokens of 0.8 us are 4 ms of one multiprocessor at 1 GHz.
    parts = cost.prefill_parts(work, MODE, how(recurrent_us=0.8), tokens=1000, arithmetic="fp16")
    assert parts["recurrence"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("mode", "peak"),
    [
        (MODE, 2048 * 4 * 1e9 / 1e12),
        (mode(sm_count=figure(100)), 10),
        (mode(clock_ghz=None), 10),
        (mode(sm_count=None), 10),
    ],
    ids=["warp-level", "dense", "no-clock", "no-count"],
)
def test_peak_for_weights_that_are_unpacked(mode: PowerMode, peak: float) -> None:
    assert cost.peak_tflops(mode, WEIGHT_ONLY) == pytest.approx(peak)
    assert cost.peak_tflops(mode, "int8") == 20


def test_energy_by_hand() -> None:
    # 40%, 70% and 100% of 10 W, for 10, 19 and 30 ms.
    energy = cost.joules_per_token(Estimate(19, 10, 30), MODE)
    assert energy is not None
    assert (energy.value, energy.low, energy.high) == pytest.approx((0.133, 0.04, 0.3))
    assert cost.joules_per_token(Estimate(19, 10, 30), mode(watts=None)) is None


def rising(values: list[float]) -> bool:
    return values == sorted(set(values))


def test_decoding_slows_with_every_load() -> None:
    assert rising([decoded(depth=depth) for depth in (0, 1, 512, 4096)])
    assert rising([decoded(batch=batch) for batch in (1, 2, 8)])
    assert rising([decoded(mode(bandwidth_gb_s=figure(rate))) for rate in (400, 200, 100, 50)])
    assert rising([decoded(how=how(bandwidth=share)) for share in (0.9, 0.6, 0.3)])
    assert rising([decoded(how=how(layer_us=cost)) for cost in (0, 10, 200)])
    weights = (1e8, 5e8, 2e9)
    assert rising([decoded(work=msgspec.structs.replace(WORK, linear_bytes=b)) for b in weights])


def test_decoding_beyond_a_window_costs_no_more() -> None:
    windowed = msgspec.structs.replace(WORK, caches=(Cache(1e5, 1000),))
    assert decoded(work=windowed, depth=500) < decoded(work=windowed, depth=1000)
    assert decoded(work=windowed, depth=1000) == decoded(work=windowed, depth=100_000)


def test_prompts_slow_with_every_load() -> None:
    assert rising([prompted(tokens=tokens) for tokens in (1, 64, 512, 4096)])
    peaks = [mode(dense_tflops={"fp16": figure(peak)}) for peak in (40, 20, 10)]
    assert rising([prompted(peak) for peak in peaks])


def test_long_prompts_grow_faster_than_their_length() -> None:
    # Attention is quadratic, so twice the tokens take more than twice as long in the end.
    assert prompted(tokens=64_000) > 2 * prompted(tokens=32_000)
    windowed = msgspec.structs.replace(WORK, caches=(Cache(1e5, 1000),))
    assert prompted(work=windowed, tokens=64_000) < 2.01 * prompted(work=windowed, tokens=32_000)


def test_a_mode_without_16_bit_products() -> None:
    plain = mode(dense_tflops={"fp32": figure(5)})
    parts = cost.prefill_parts(WORK, plain, HOW, tokens=1000, arithmetic="fp32")
    assert parts["attention"] == pytest.approx(2 * 80)
    assert parts["matrices"] == pytest.approx(2 * 400.04)
