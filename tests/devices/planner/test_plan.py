"""The planner: one example worked by hand, the directions in which figures move."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.plan import choices, plan
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine, Figure, Measured, Memory, PowerMode
from edgelm.planning import Estimate, Plan, PlanRequest
from edgelm.spec.decoder import DecoderSpec
from tests.core.spec.test_decoder import CONFIG, EMBEDDING, LINEAR, VECTORS
from tests.devices.test_profile import DELIVERED


@pytest.fixture(autouse=True)
def _any_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that fit on paper, which no attention kernel takes (see test_kernels.py)."""
    monkeypatch.setattr("edgelm.devices.planner.estimate.check_shape", lambda *_: None)


def figure(value: float) -> Figure:
    return Figure(value, "hand", "assumed")


def toaster_mode(name: str, share: float, watts: float | None) -> PowerMode:
    """One gigabyte a second, one to four operations a nanosecond; or a share of both."""
    dense = {"fp32": 0.001, "int8": 0.002, "int4": 0.004}
    return PowerMode(
        name=name,
        bandwidth_gb_s=figure(share),
        dense_tflops={kind: figure(share * peak) for kind, peak in dense.items()},
        watts=figure(watts) if watts else None,
    )


TOASTER = Profile(
    schema_version=1,
    name="toaster",
    title="a toaster",
    form="cpu",
    architecture="cpu",
    memory=Memory("dedicated", reserved_bytes=figure(1_000_000), bytes=figure(4_000_000)),
    power_mode="brown",
    power_modes=(toaster_mode("brown", 1, None), toaster_mode("pale", 0.5, 10)),
    engines=(
        Engine(
            name="onnxruntime",
            dialect="ort",
            precisions=("fp32", "int8", "int4"),
            kv=("fp32", "int8"),
            runtime_bytes=figure(10_000),
            source="hand",
            measured=Measured(
                bandwidth={"fp32": 0.8, "int4": 0.5},
                cache_bandwidth={"fp32": 0.5, "int8": 0.25},
                compute={"fp32": 0.75, "int4": 0.25},
                attention=0.2,
                layer_us=3,
                step_us=0,
                prompt_layers=2,
                band=0.2,
                source="hand",
            ),
        ),
        Engine("tensorrt", "standard", ("fp16", "int4"), ("fp16",), figure(10_000), "hand"),
    ),
    default_context=48,
    prefill_chunk=16,
    sources={"hand": "made up"},
)
SPEC = DecoderSpec.from_hf(CONFIG)
# Of 4-bit weights with zero points a row of 8 or 16 is one group of 16: 8 bytes, 2 and 1.
ROW = 8 + 2 + 1
LINEAR_BYTES = 2 * (8 + 4 + 4 + 8 + 16 + 16 + 8) * ROW
TABLE_BYTES = 32 * ROW
# TensorRT's are planned as groups of 64 with zero points, not padded: 4 + 20/64 bits.
BITS = 4.3125


def llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int) -> Any:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


# Of the sizes of SmolLM2-135M, Llama 3.2 1B and Llama 3.1 8B.
SMALL = DecoderSpec.from_hf(
    CONFIG
    | llama(30, 576, 1536, 9, 3, 49_152)
    | {"max_position_embeddings": 8192, "tie_word_embeddings": True}
)
BIG = DecoderSpec.from_hf(
    CONFIG | llama(16, 2048, 8192, 32, 8, 128_256) | {"max_position_embeddings": 131_072}
)
LARGE = DecoderSpec.from_hf(
    CONFIG | llama(32, 4096, 14336, 32, 8, 128_256) | {"max_position_embeddings": 131_072}
)


def with_memory(budget: float, **over: Any) -> Profile:
    """The toaster with so much memory to use, made for models of a real size."""
    memory = Memory("dedicated", reserved_bytes=figure(0), bytes=figure(budget))
    large = {"memory": memory, "default_context": 8192, "prefill_chunk": 128}
    return msgspec.structs.replace(TOASTER, **large | over)


ROOMY = with_memory(64e9)
ORIN = DELIVERED["jetson-orin-nano-8gb-super"]
LAPTOP = DELIVERED["rtx-4060-laptop"]


def bounds(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_worked_memory() -> None:
    result = plan(SPEC, TOASTER, PlanRequest("int4"))
    assert (result.target, result.engine, result.dialect) == ("toaster", "onnxruntime", "ort")
    assert (result.precision, result.kv, result.context) == ("int4", "int8", 48)
    weights = LINEAR_BYTES + 2 * TABLE_BYTES + 4 * VECTORS
    assert result.weight_bytes == weights
    # Keys and values of 2 layers, 2 heads of 2, a byte each.
    assert result.kv_bytes == 2 * 2 * 4 * 48
    # A chunk of 16 rows: q, k, v and 4 hidden, 3 ffn, scores of 4 heads; the cache widened; logits.
    rows = 16 * (8 + 2 * 4 + 4 * 8 + 3 * 16 + 4 * 48)
    assert result.workspace_bytes == 1.25 * 4 * (rows + 4 * 48 * 4 + 32)
    # The libraries, 32 tokens of a tokenizer, and a session of two layers.
    assert result.runtime_bytes == 10_000 + 32 * 300 + 1_000_000 + 2 * 350_000
    total = weights + result.packed_bytes + result.kv_bytes
    total += result.workspace_bytes + result.runtime_bytes
    assert result.total_bytes == total
    # The largest matrix in fp32 three times over, and the gate's rows of logits.
    assert (result.build_bytes, result.build_segments, result.build_room_bytes) == (0, 1, 0)
    assert result.export_bytes == 12 * EMBEDDING + 4 * 768 * 32 + total
    assert result.budget_bytes == 3_000_000
    assert result.parameters == LINEAR + 2 * EMBEDDING + VECTORS
    assert result.works
    assert result.missing == result.advice == ()


def test_copies_of_the_weights_count() -> None:
    engine = msgspec.structs.replace(TOASTER.engines[1], weight_copies=1.5)
    copying = msgspec.structs.replace(TOASTER, engines=(engine,))
    request = PlanRequest("int4", engine="tensorrt")
    once, twice = (plan(SPEC, profile, request) for profile in (TOASTER, copying))
    assert (once.packed_bytes, twice.packed_bytes) == (0, once.weight_bytes // 2)
    assert twice.total_bytes == once.total_bytes + twice.packed_bytes
    assert twice.weight_bytes == once.weight_bytes


def test_worked_times() -> None:
    result = plan(SPEC, TOASTER, PlanRequest("int4"))
    assert (result.power_mode, result.prompt, result.batch) == ("brown", 48, 1)
    # All weights but the input embedding at half of 1 GB/s; 48 tokens of cache at a quarter.
    read = 1e3 * (LINEAR_BYTES + TABLE_BYTES) / 0.5e9
    step = read + 1e3 * 16 * 48 / 0.25e9 + 2 * 3e-3
    assert bounds(result.decode_ms) == pytest.approx((step, 0.8 * step, 1.2 * step))
    # Matrices of 48 tokens and one head at a quarter of 4 GFLOP/s, attention at a fifth.
    matrices = 1e3 * 2 * (LINEAR * 48 + EMBEDDING) / 1e9
    attention = 1e3 * 4 * (48 * 48 / 2) * 16 / 0.8e9
    first = matrices + attention + read + 2 * 2 * 3e-3
    assert bounds(result.prefill_ms) == pytest.approx((first, 0.8 * first, 1.2 * first))
    assert result.binds == "memory bandwidth"
    assert result.joules_per_token is None
    assert result.basis == "made up"


def test_slower_mode_and_its_energy() -> None:
    fast = plan(SPEC, TOASTER, PlanRequest("int4"))
    slow = plan(SPEC, TOASTER, PlanRequest("int4", power_mode="pale"))
    assert slow.decode_ms.value == pytest.approx(2 * fast.decode_ms.value - 2 * 3e-3)
    assert slow.joules_per_token is not None
    # 40%, 70% and 100% of 10 W.
    energy = (7e-3 * slow.decode_ms.value, 4e-3 * slow.decode_ms.low, 1e-2 * slow.decode_ms.high)
    assert bounds(slow.joules_per_token) == pytest.approx(energy)


def test_a_batch_shares_the_energy_of_a_step() -> None:
    four = plan(SPEC, TOASTER, PlanRequest("int4", power_mode="pale", batch=4))
    energy = four.joules_per_token
    assert energy is not None
    assert energy.value == pytest.approx(7e-3 * four.decode_ms.value / 4)
    assert energy.low == pytest.approx(4e-3 * four.decode_ms.low / 4)
    assert energy.high == pytest.approx(1e-2 * four.decode_ms.high / 4)


def test_batch_multiplies_the_cache_and_the_rate() -> None:
    one = plan(BIG, ROOMY, PlanRequest("int4"))
    four = plan(BIG, ROOMY, PlanRequest("int4", batch=4))
    assert four.kv_bytes == 4 * one.kv_bytes
    assert four.weight_bytes == one.weight_bytes
    assert four.decode_ms.value > one.decode_ms.value
    assert one.tokens_per_second.value < four.tokens_per_second.value
    assert four.tokens_per_second.value < 4 * one.tokens_per_second.value


def test_a_batch_is_fast_enough_together() -> None:
    one = plan(BIG, ROOMY, PlanRequest("int4")).tokens_per_second.value
    asked = PlanRequest("int4", min_tokens_per_second=1.5 * one)
    assert not plan(BIG, ROOMY, asked).fast_enough
    assert plan(BIG, ROOMY, msgspec.structs.replace(asked, batch=4)).fast_enough


def test_products_are_narrow_only_where_both_factors_are() -> None:
    first = {
        name: plan(BIG, LAPTOP, PlanRequest(name, prompt=4096)).prefill_ms.value
        for name in ("fp16", "bf16", "fp8", "int8", "int4")
    }
    assert first["bf16"] == first["fp16"]
    assert first["fp8"] < 0.8 * first["fp16"]
    # Unpacked weights are multiplied in 16 bits: only reading them is faster.
    assert 0.9 * first["fp16"] < first["int4"] < first["int8"] < first["fp16"]
    # Those 16 bits are the older instruction's, which is not the fastest of newer chips.
    thor = DELIVERED["jetson-thor-t5000"]
    names = ("fp16", "bf16", "int8")
    wide, brain, unpacked = (plan(LARGE, thor, PlanRequest(n, prompt=4096)) for n in names)
    assert brain.prefill_ms == wide.prefill_ms
    assert unpacked.prefill_ms.value > 2 * wide.prefill_ms.value


def test_other_engines_keep_16_bits_to_look_tokens_up_and_8_for_the_head() -> None:
    result = plan(SPEC, TOASTER, PlanRequest("int4", engine="tensorrt"))
    assert (result.engine, result.dialect, result.kv) == ("tensorrt", "standard", "fp16")
    assert result.weight_bytes == LINEAR * BITS / 8 + (2 + 1) * EMBEDDING + 4 * VECTORS
    assert "published rows" in result.basis


def test_a_tied_embedding_is_read_once_as_the_head() -> None:
    tied = DecoderSpec.from_hf(CONFIG | {"tie_word_embeddings": True})
    untied = plan(SPEC, TOASTER, PlanRequest("int4"))
    assert plan(tied, TOASTER, PlanRequest("int4")).decode_ms == untied.decode_ms
    assert plan(tied, TOASTER, PlanRequest("int4")).weight_bytes < untied.weight_bytes


def test_windows_make_long_prompts_cheaper() -> None:
    narrow = [msgspec.structs.replace(layer, window=1024) for layer in BIG.layers[1:]]
    windowed = msgspec.structs.replace(BIG, layers=(BIG.layers[0], *narrow))
    for prompt, cheaper in ((1024, False), (8192, True)):
        asked = PlanRequest("int4", prompt=prompt, context=8192, engine="onnxruntime-cuda")
        full, less = plan(BIG, ORIN, asked), plan(windowed, ORIN, asked)
        assert (less.decode_ms.value < full.decode_ms.value) == cheaper
        assert (less.prefill_ms.value < full.prefill_ms.value) == cheaper


def test_the_first_token_of_a_batch_waits_for_every_prompt() -> None:
    one, four = (plan(BIG, ORIN, PlanRequest("int4", batch=n)) for n in (1, 4))
    assert four.prefill_ms.value == pytest.approx(4 * one.prefill_ms.value)


@pytest.mark.parametrize(("batch", "said"), [(1, False), (4, True), (8, False), (32, True)])
def test_a_batch_that_no_published_row_has_is_an_extrapolation(batch: int, said: bool) -> None:
    notes = plan(BIG, LAPTOP, PlanRequest("int4", batch=batch)).notes
    assert any("extrapolation" in note for note in notes) == said


def test_a_large_model_is_bound_by_bandwidth() -> None:
    assert plan(BIG, ROOMY, PlanRequest("int4")).binds == "memory bandwidth"
    unfit = plan(LARGE, ORIN, PlanRequest("fp16"))
    assert not unfit.fits
    assert unfit.binds == "memory bandwidth"


def test_memory_grows_with_the_context() -> None:
    plans = [
        plan(BIG, ROOMY, PlanRequest("int8", context=n)) for n in (2, 256, 1024, 8192, 131_072)
    ]
    totals = [result.total_bytes for result in plans]
    assert totals == sorted(totals)
    # Short ones need less than the head does while it is packed.
    assert totals[0] == totals[1] == totals[2] < totals[3] < totals[4]
    assert len({result.weight_bytes for result in plans}) == 1


def test_time_grows_with_the_prompt() -> None:
    asked = [PlanRequest("int4", prompt=n, engine="onnxruntime-cuda") for n in (1, 64, 512, 4096)]
    plans = [plan(BIG, ORIN, one) for one in asked]
    for field in ("decode_ms", "prefill_ms"):
        values = [getattr(result, field).value for result in plans]
        assert values == sorted(set(values))


@pytest.mark.parametrize(
    ("device", "names"),
    [(ROOMY, ["fp32", "int8", "auto", "int4"]), (LAPTOP, ["fp16", "int8", "auto", "int4"])],
    ids=["ort", "standard"],
)
def test_fewer_bits_are_smaller_and_faster(device: Profile, names: list[str]) -> None:
    plans = [plan(BIG, device, PlanRequest(name, kv=device.engines[0].kv[-1])) for name in names]
    for values in (
        [result.weight_bytes for result in plans],
        [result.total_bytes for result in plans],
        [result.decode_ms.value for result in plans],
    ):
        assert values == sorted(set(values), reverse=True)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (PlanRequest("int4", kv="int8"), PlanRequest("int4", kv="fp32")),
        (PlanRequest("int4", group_size=128), PlanRequest("int4", group_size=16)),
        (PlanRequest("int4", symmetric=True), PlanRequest("int4", symmetric=False)),
    ],
    ids=["cache", "group-size", "symmetry"],
)
def test_options_count(smaller: PlanRequest, larger: PlanRequest) -> None:
    assert plan(BIG, ROOMY, smaller).total_bytes < plan(BIG, ROOMY, larger).total_bytes


def test_fp32_goes_with_an_fp32_cache() -> None:
    assert plan(SPEC, TOASTER, PlanRequest("fp32")).kv == "fp32"
    assert plan(SPEC, TOASTER, PlanRequest("fp32", kv="int8")).kv == "int8"
    assert plan(SPEC, TOASTER, PlanRequest()).kv == "int8"


@pytest.mark.parametrize(
    ("asked", "default", "given"),
    [(None, 48, 48), (None, 1000, 64), (64, 48, 64), (2, 48, 2)],
    ids=["device's", "model's", "most", "least"],
)
def test_context(asked: int | None, default: int, given: int) -> None:
    profile = msgspec.structs.replace(TOASTER, default_context=default)
    assert plan(SPEC, profile, PlanRequest(context=asked)).context == given


def test_longrope_stays_within_its_original_context_unless_asked() -> None:
    rope = SPEC.layers[0].rope
    assert rope is not None
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    scaled = msgspec.structs.replace(rope, scaling=scaling)
    layers = tuple(msgspec.structs.replace(layer, rope=scaled) for layer in SPEC.layers)
    longrope = msgspec.structs.replace(SPEC, layers=layers)
    assert plan(longrope, TOASTER, PlanRequest()).context == 32
    assert plan(longrope, TOASTER, PlanRequest(context=64)).context == 64


def test_prompt_is_no_longer_than_the_context() -> None:
    result = plan(SPEC, TOASTER, PlanRequest(context=32, prompt=5000))
    assert result.prompt == 32
    assert result.prefill_ms == plan(SPEC, TOASTER, PlanRequest(context=32, prompt=32)).prefill_ms


def test_less_memory_may_be_asked_for() -> None:
    assert plan(BIG, ROOMY, PlanRequest("int4", max_memory_bytes=10**9)).budget_bytes == 10**9
    assert not plan(BIG, ROOMY, PlanRequest("int4", max_memory_bytes=10**9)).fits
    assert plan(BIG, ROOMY, PlanRequest("int4", max_memory_bytes=10**12)).budget_bytes == 64 * 10**9


def test_exactly_full_fits() -> None:
    needed = plan(BIG, ROOMY, PlanRequest("int4")).total_bytes
    assert plan(BIG, with_memory(needed), PlanRequest("int4")).fits
    assert not plan(BIG, with_memory(needed - 1), PlanRequest("int4")).fits


def consistent(result: Plan) -> bool:
    rates = [result.decode_ms, result.prefill_ms, result.tokens_per_second]
    energy = [result.joules_per_token] if result.joules_per_token else []
    return all(0 < one.low < one.value < one.high for one in rates + energy)


@pytest.mark.parametrize("name", sorted(DELIVERED))
def test_every_profile_plans_every_precision(name: str) -> None:
    profile = DELIVERED[name]
    for spec in (SMALL, LARGE):
        for engine in profile.engines:
            ranked = choices(spec, profile, PlanRequest(engine=engine.name))
            assert {one.precision for one in ranked} == set(engine.precisions)
            assert all(map(consistent, ranked))
            sizes = [(one.precision, one.total_bytes) for one in ranked]
            assert len(sizes) == len(set(sizes))  # none is listed twice
            assert plan(spec, profile, PlanRequest(engine=engine.name)).precision == "auto"
    works = any(one.works for one in choices(SMALL, profile, PlanRequest()))
    assert works == (profile.jetson != "xavier")  # which no engine of ours runs on


def test_one_16_bit_cache_where_the_engine_has_both() -> None:
    thor = DELIVERED["jetson-thor-t5000"]
    rows = [(one.precision, one.kv) for one in choices(BIG, thor, PlanRequest())]
    assert len(rows) == len(set(rows)) == len(thor.engine().precisions)
    assert {kv for precision, kv in rows if precision != "bf16"} == {"fp16"}
    assert ("bf16", "bf16") in rows
    both = choices(BIG, thor, PlanRequest(kv="bf16"))
    assert {one.kv for one in both} == {"bf16"}  # if it is requested


@pytest.mark.parametrize("name", ["jetson-xavier-nx", "jetson-agx-xavier"])
def test_device_that_edgelm_does_not_run_on(name: str) -> None:
    request = PlanRequest("int8", power_mode="15W")
    (note,) = plan(BIG, DELIVERED[name], request).notes
    assert note.startswith("edgelm does not run on the GPU of this device: JetPack 5")
    elsewhere = plan(BIG, DELIVERED["jetson-orin-nano-8gb"], request).notes
    assert not any("does not run" in one for one in elsewhere)
