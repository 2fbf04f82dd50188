"""The planner: one example worked by hand, the directions in which figures move, advice."""

import math
import re
import time
from typing import Any

import msgspec
import pytest

from edgelm.devices.plan import choices, plan
from edgelm.devices.profile import Engine, Figure, Measured, Memory, PowerMode, Profile
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import Estimate, Plan, Request
from edgelm.precision import KV_BYTES
from edgelm.spec import DecoderSpec
from tests.core.test_spec import CONFIG, EMBEDDING, LINEAR, VECTORS
from tests.devices.test_profile import DELIVERED


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
    memory=Memory("dedicated", reserved_bytes=figure(1_000_000), bytes=figure(2_000_000)),
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
                source="toasts",
            ),
        ),
        Engine("tensorrt", "standard", ("fp16", "int4"), ("fp16",), figure(10_000), "hand"),
    ),
    default_context=48,
    prefill_chunk=16,
    sources={"hand": "made up"},
)
SPEC = DecoderSpec.from_hf(CONFIG)
# 4-bit weights in groups of 64 with zero points: 4 + 20/64 bits.
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
    result = plan(SPEC, TOASTER, Request("int4"))
    assert (result.target, result.engine, result.dialect) == ("toaster", "onnxruntime", "ort")
    assert (result.precision, result.kv, result.context) == ("int4", "int8", 48)
    weights = math.ceil((LINEAR + 2 * EMBEDDING) * BITS / 8) + 4 * VECTORS
    assert result.weight_bytes == weights
    # Keys and values of 2 layers, 2 heads of 2, a byte each.
    assert result.kv_bytes == 2 * 2 * 4 * 48
    # A chunk of 16 rows: q, k, v and 4 hidden, 3 ffn, scores of 4 heads; the cache widened; logits.
    rows = 16 * (8 + 2 * 4 + 4 * 8 + 3 * 16 + 4 * 48)
    assert result.workspace_bytes == 4 * (rows + 4 * 48 * 4 + 32)
    assert result.runtime_bytes == 10_000
    total = weights + result.kv_bytes + result.workspace_bytes + 10_000
    assert result.total_bytes == total
    # The largest matrix in fp32 three times over, and the gate's rows of logits.
    assert result.build_bytes == 12 * EMBEDDING + 4 * 768 * 32 + total
    assert result.budget_bytes == 1_000_000
    assert result.parameters == LINEAR + 2 * EMBEDDING + VECTORS
    assert result.works
    assert result.advice == ()


def test_a_packed_copy_of_the_weights_counts() -> None:
    engine = msgspec.structs.replace(TOASTER.engines[0], weight_copies=1.5)
    packing = msgspec.structs.replace(TOASTER, engines=(engine,))
    once, twice = (plan(SPEC, profile, Request("int4")) for profile in (TOASTER, packing))
    assert (once.packed_bytes, twice.packed_bytes) == (0, once.weight_bytes // 2)
    assert twice.total_bytes == once.total_bytes + twice.packed_bytes
    assert twice.weight_bytes == once.weight_bytes


def test_worked_times() -> None:
    result = plan(SPEC, TOASTER, Request("int4"))
    assert (result.power_mode, result.prompt, result.batch) == ("brown", 48, 1)
    # All weights but the input embedding at half of 1 GB/s; 48 tokens of cache at a quarter.
    read = 1e3 * (LINEAR + EMBEDDING) * BITS / 8 / 0.5e9
    step = read + 1e3 * 16 * 48 / 0.25e9 + 2 * 3e-3
    assert bounds(result.decode_ms) == pytest.approx((step, 0.8 * step, 1.2 * step))
    # Matrices of 48 tokens and one head at a quarter of 4 GFLOP/s, attention at a fifth.
    matrices = 1e3 * 2 * (LINEAR * 48 + EMBEDDING) / 1e9
    attention = 1e3 * 4 * (48 * 48 / 2) * 16 / 0.8e9
    first = matrices + attention + read + 2 * 2 * 3e-3
    assert bounds(result.prefill_ms) == pytest.approx((first, 0.8 * first, 1.2 * first))
    assert result.binds == "per-layer overhead"
    assert result.joules_per_token is None
    assert result.basis == "toasts"


def test_slower_mode_and_its_energy() -> None:
    fast = plan(SPEC, TOASTER, Request("int4"))
    slow = plan(SPEC, TOASTER, Request("int4", power_mode="pale"))
    assert slow.decode_ms.value == pytest.approx(2 * fast.decode_ms.value - 2 * 3e-3)
    assert slow.joules_per_token is not None
    # 40%, 70% and 100% of 10 W.
    energy = (7e-3 * slow.decode_ms.value, 4e-3 * slow.decode_ms.low, 1e-2 * slow.decode_ms.high)
    assert bounds(slow.joules_per_token) == pytest.approx(energy)


def test_batch_multiplies_the_cache_and_the_rate() -> None:
    one = plan(BIG, ROOMY, Request("int4"))
    four = plan(BIG, ROOMY, Request("int4", batch=4))
    assert four.kv_bytes == 4 * one.kv_bytes
    assert four.weight_bytes == one.weight_bytes
    assert four.decode_ms.value > one.decode_ms.value
    assert one.tokens_per_second.value < four.tokens_per_second.value
    assert four.tokens_per_second.value < 4 * one.tokens_per_second.value


def test_a_batch_is_fast_enough_together() -> None:
    one = plan(BIG, ROOMY, Request("int4")).tokens_per_second.value
    asked = Request("int4", min_tokens_per_second=1.5 * one)
    assert not plan(BIG, ROOMY, asked).fast_enough
    assert plan(BIG, ROOMY, msgspec.structs.replace(asked, batch=4)).fast_enough


def test_products_are_narrow_only_where_both_factors_are() -> None:
    first = {
        name: plan(BIG, LAPTOP, Request(name, prompt=4096)).prefill_ms.value
        for name in ("fp16", "bf16", "fp8", "int8", "int4")
    }
    assert first["bf16"] == first["fp16"]
    assert first["fp8"] < 0.8 * first["fp16"]
    # Unpacked weights are multiplied in 16 bits: only reading them is faster.
    assert 0.9 * first["fp16"] < first["int4"] < first["int8"] < first["fp16"]
    # Those 16 bits are the older instruction's, which is not the fastest of newer chips.
    thor = DELIVERED["jetson-thor-t5000"]
    names = ("fp16", "bf16", "int8")
    wide, brain, unpacked = (plan(LARGE, thor, Request(n, prompt=4096)) for n in names)
    assert brain.prefill_ms == wide.prefill_ms
    assert unpacked.prefill_ms.value > 2 * wide.prefill_ms.value


def test_other_engines_keep_the_head_in_16_bits() -> None:
    result = plan(SPEC, TOASTER, Request("int4", engine="tensorrt"))
    assert (result.engine, result.dialect, result.kv) == ("tensorrt", "standard", "fp16")
    assert result.weight_bytes == LINEAR * BITS / 8 + 2 * 2 * EMBEDDING + 4 * VECTORS
    assert "published rows" in result.basis


def test_a_tied_embedding_is_read_once_as_the_head() -> None:
    tied = DecoderSpec.from_hf(CONFIG | {"tie_word_embeddings": True})
    untied = plan(SPEC, TOASTER, Request("int4"))
    assert plan(tied, TOASTER, Request("int4")).decode_ms == untied.decode_ms
    assert plan(tied, TOASTER, Request("int4")).weight_bytes < untied.weight_bytes


def test_windows_make_long_prompts_cheaper() -> None:
    narrow = [msgspec.structs.replace(layer, window=1024) for layer in BIG.layers[1:]]
    windowed = msgspec.structs.replace(BIG, layers=(BIG.layers[0], *narrow))
    for prompt, cheaper in ((1024, False), (8192, True)):
        full = plan(BIG, ORIN, Request("int4", prompt=prompt, context=8192))
        less = plan(windowed, ORIN, Request("int4", prompt=prompt, context=8192))
        assert (less.decode_ms.value < full.decode_ms.value) == cheaper
        assert (less.prefill_ms.value < full.prefill_ms.value) == cheaper


def test_a_large_model_is_bound_by_bandwidth() -> None:
    assert plan(BIG, ROOMY, Request("int4")).binds == "memory bandwidth"
    assert plan(LARGE, ORIN, Request("fp16")).binds == "memory"


def test_memory_grows_with_the_context() -> None:
    plans = [plan(BIG, ROOMY, Request("int8", context=n)) for n in (2, 256, 1024, 8192, 131_072)]
    totals = [result.total_bytes for result in plans]
    assert totals == sorted(set(totals))
    assert len({result.weight_bytes for result in plans}) == 1


def test_time_grows_with_the_prompt() -> None:
    plans = [plan(BIG, ORIN, Request("int4", prompt=n)) for n in (1, 64, 512, 4096)]
    for field in ("decode_ms", "prefill_ms"):
        values = [getattr(result, field).value for result in plans]
        assert values == sorted(set(values))


@pytest.mark.parametrize(
    ("device", "names"),
    [(ROOMY, ["fp32", "int8", "auto", "int4"]), (LAPTOP, ["fp16", "int8", "auto", "int4"])],
    ids=["ort", "standard"],
)
def test_fewer_bits_are_smaller_and_faster(device: Profile, names: list[str]) -> None:
    plans = [plan(BIG, device, Request(name, kv=device.engines[0].kv[-1])) for name in names]
    for values in (
        [result.weight_bytes for result in plans],
        [result.total_bytes for result in plans],
        [result.decode_ms.value for result in plans],
    ):
        assert values == sorted(set(values), reverse=True)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (Request("int4", kv="int8"), Request("int4", kv="fp32")),
        (Request("int4", group_size=128), Request("int4", group_size=16)),
        (Request("int4", symmetric=True), Request("int4", symmetric=False)),
    ],
    ids=["cache", "group-size", "symmetry"],
)
def test_options_count(smaller: Request, larger: Request) -> None:
    assert plan(BIG, ROOMY, smaller).total_bytes < plan(BIG, ROOMY, larger).total_bytes


def test_fp32_goes_with_an_fp32_cache() -> None:
    assert plan(SPEC, TOASTER, Request("fp32")).kv == "fp32"
    assert plan(SPEC, TOASTER, Request("fp32", kv="int8")).kv == "int8"
    assert plan(SPEC, TOASTER, Request()).kv == "int8"


@pytest.mark.parametrize(
    ("asked", "default", "given"),
    [(None, 48, 48), (None, 1000, 64), (64, 48, 64), (2, 48, 2)],
    ids=["device's", "model's", "most", "least"],
)
def test_context(asked: int | None, default: int, given: int) -> None:
    profile = msgspec.structs.replace(TOASTER, default_context=default)
    assert plan(SPEC, profile, Request(context=asked)).context == given


def test_longrope_stays_within_its_original_context_unless_asked() -> None:
    rope = SPEC.layers[0].rope
    assert rope is not None
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    scaled = msgspec.structs.replace(rope, scaling=scaling)
    layers = tuple(msgspec.structs.replace(layer, rope=scaled) for layer in SPEC.layers)
    longrope = msgspec.structs.replace(SPEC, layers=layers)
    assert plan(longrope, TOASTER, Request()).context == 32
    assert plan(longrope, TOASTER, Request(context=64)).context == 64


def test_prompt_is_no_longer_than_the_context() -> None:
    result = plan(SPEC, TOASTER, Request(context=32, prompt=5000))
    assert result.prompt == 32
    assert result.prefill_ms == plan(SPEC, TOASTER, Request(context=32, prompt=32)).prefill_ms


def test_less_memory_may_be_asked_for() -> None:
    assert plan(BIG, ROOMY, Request("int4", max_memory_bytes=10**9)).budget_bytes == 10**9
    assert not plan(BIG, ROOMY, Request("int4", max_memory_bytes=10**9)).fits
    assert plan(BIG, ROOMY, Request("int4", max_memory_bytes=10**12)).budget_bytes == 64 * 10**9


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(context=0), "context 0 is not possible: expected 2 to 64 (the model's max_pos"),
        (Request(context=1), "context 1 is not possible: expected 2 to 64"),
        (Request(context=65), "context 65 is not possible: expected 2 to 64"),
        (Request(prompt=0), "prompt 0 and batch 1: expected whole numbers above zero"),
        (Request(batch=-1), "prompt 512 and batch -1: expected whole numbers above zero"),
        (Request(max_memory_bytes=0), "a memory of 0 bytes leaves nothing for a model; expected"),
        (Request(min_tokens_per_second=0), "0 tokens/s asked; expected a rate above zero"),
        (Request(min_tokens_per_second=-3), "-3 tokens/s asked; expected a rate above zero"),
        (Request("int4", group_size=48), "group size 48 is not one of [16, 32, 64, 128, 256]"),
    ],
    ids=["no-context", "one", "beyond", "prompt", "batch", "memory", "rate", "negative", "group"],
)
def test_impossible_requests(request_: Request, message: str) -> None:
    for ask in (plan, choices):
        with pytest.raises(BadInput) as caught:
            ask(SPEC, TOASTER, request_)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("int3"), "unknown precision 'int3'; known: "),
        (Request("fp16"), "toaster has no fp16 with onnxruntime; it has auto, fp32, int8, int4"),
        (Request("int4", kv="fp16"), "toaster has no fp16 cache; it has fp32, int8"),
        (Request(engine="vllm"), "toaster has no engine 'vllm'; it has onnxruntime, tensorrt"),
        (Request(power_mode="black"), "toaster has no power mode 'black'; it has brown, pale"),
    ],
    ids=["precision", "not-here", "cache", "engine", "power-mode"],
)
def test_unknown_names(request_: Request, message: str) -> None:
    for ask in (plan, choices):
        with pytest.raises(UnknownName) as caught:
            ask(SPEC, TOASTER, request_)
        assert str(caught.value).startswith(message)


def test_choices_are_every_precision_and_cache() -> None:
    pairs = [(one.precision, one.kv) for one in choices(BIG, ROOMY, Request())]
    # Nearest to the source first; no rounded cache beside fp32 weights unless it is asked for.
    assert pairs == [
        ("fp32", "fp32"),
        ("int8", "fp32"),
        ("int8", "int8"),
        ("int4", "fp32"),
        ("int4", "int8"),
    ]
    assert {one.kv for one in choices(BIG, ROOMY, Request(kv="int8"))} == {"int8"}
    assert {one.precision for one in choices(BIG, ROOMY, Request("int4"))} == {"int4"}
    rounded = choices(BIG, ROOMY, Request("fp32", kv="int8"))
    assert [(one.precision, one.kv) for one in rounded] == [("fp32", "int8")]


@pytest.mark.parametrize("rate", [None, 0.05, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("gigabytes", [0.1, 1.5, 3, 64])
def test_choices_rank_what_works_before_what_fits(gigabytes: float, rate: float | None) -> None:
    ranked = choices(BIG, with_memory(gigabytes * 1e9), Request(min_tokens_per_second=rate))
    quality = ["fp32", "int8", "int4"]
    classes = [0 if one.works else 1 if one.fits else 2 for one in ranked]
    assert classes == sorted(classes)
    working = [(quality.index(one.precision), -KV_BYTES[one.kv]) for one in ranked if one.works]
    assert working == sorted(working)
    slow = [one.decode_ms.value for one in ranked if one.fits and not one.works]
    assert slow == sorted(slow)
    unfit = [one.total_bytes for one in ranked if not one.fits]
    assert unfit == sorted(unfit)


def followed(advice: str, request: Request) -> Request:
    """The request changed as a line of advice says."""
    assert re.fullmatch(r"(--(context|precision|kv) \w+ ?)+", advice), advice
    changes: dict[str, Any] = dict(re.findall(r"--(\w+) (\w+)", advice))
    if "context" in changes:
        changes["context"] = int(changes["context"])
    return msgspec.structs.replace(request, **changes)


# Requests that the model of a billion parameters does not meet, and what is advised.
ASKED = {
    "cache": (ROOMY, Request("int8", kv="int8", context=65_536, max_memory_bytes=2 * 10**9), 1),
    "wide-cache": (ROOMY, Request("int8", kv="fp32", max_memory_bytes=2 * 10**9), 2),
    "bits": (ROOMY, Request("fp32", max_memory_bytes=3 * 10**9), 1),
    "all": (ROOMY, Request("fp32", context=131_072, max_memory_bytes=3 * 10**9), 1),
    "slow": (ROOMY, Request("fp32", min_tokens_per_second=0.6), 1),
    "laptop": (LAPTOP, Request("fp16", context=131_072, batch=2), 1),
    "orin": (ORIN, Request("fp16", context=131_072), 2),
    "orin-slow": (ORIN, Request("fp16", min_tokens_per_second=50), 1),
    "orin-little": (ORIN, Request("int4", max_memory_bytes=2_500_000_000, context=65_536), 1),
}


@pytest.mark.parametrize(("device", "request_", "count"), ASKED.values(), ids=ASKED)
def test_every_line_of_advice_works(device: Profile, request_: Request, count: int) -> None:
    for spec in (BIG, LARGE):
        result = plan(spec, device, request_)
        assert not result.works
        options = [line for line in result.advice if line.startswith("--")]
        assert len(options) == count or spec is LARGE
        assert bool(options) != ("a smaller model" in result.advice)
        for option in options:
            changed = followed(option, request_)
            assert changed != request_
            assert plan(spec, device, changed).works, option


def test_advice_may_be_to_change_all_three() -> None:
    device, request_, _ = ASKED["all"]
    advice = plan(BIG, device, request_).advice[1]
    assert re.fullmatch(r"--precision int4 --kv int8 --context \d+", advice)


def test_advice_says_what_is_missing() -> None:
    unfit = plan(BIG, ROOMY, Request("int8", max_memory_bytes=10**9))
    assert re.fullmatch(r"\d+(\.\d+)? [MG]B too much", unfit.advice[0])
    slow = plan(BIG, ROOMY, Request("int8", min_tokens_per_second=1.5))
    assert slow.advice[0] == f"{slow.tokens_per_second.value:.3g} tokens/s where 1.5 are asked"
    both = plan(BIG, ROOMY, Request("fp32", max_memory_bytes=10**9, min_tokens_per_second=99))
    assert len(both.advice) == 3
    assert both.advice[2] == "a smaller model"


def test_advised_context_is_the_longest_in_steps_of_256() -> None:
    device, request_, _ = ASKED["cache"]
    longest = followed(plan(BIG, device, request_).advice[1], request_)
    assert longest.context is not None
    assert longest.context % 256 == 0
    more = msgspec.structs.replace(longest, context=longest.context + 256)
    assert not plan(BIG, device, more).fits


def test_nothing_helps_but_a_smaller_model() -> None:
    result = plan(BIG, with_memory(10_000_000), Request("int4"))
    assert not result.fits
    assert result.advice[1:] == ("a smaller model",)


def test_exactly_full_fits() -> None:
    needed = plan(BIG, ROOMY, Request("int4")).total_bytes
    assert plan(BIG, with_memory(needed), Request("int4")).fits
    assert not plan(BIG, with_memory(needed - 1), Request("int4")).fits


def consistent(result: Plan) -> bool:
    rates = [result.decode_ms, result.prefill_ms, result.tokens_per_second]
    energy = [result.joules_per_token] if result.joules_per_token else []
    return all(0 < one.low < one.value < one.high for one in rates + energy)


@pytest.mark.parametrize("name", sorted(DELIVERED))
def test_every_profile_plans_in_well_under_a_second(name: str) -> None:
    profile = DELIVERED[name]
    start = time.perf_counter()
    for spec in (SMALL, LARGE):
        for engine in profile.engines:
            ranked = choices(spec, profile, Request(engine=engine.name))
            assert {one.precision for one in ranked} == set(engine.precisions)
            assert all(map(consistent, ranked))
            assert plan(spec, profile, Request(engine=engine.name)).precision == "auto"
    assert time.perf_counter() - start < 0.5
    assert any(one.works for one in choices(SMALL, profile, Request()))
