"""The planner: one example worked by hand, the directions in which figures move, advice."""

import math
import re
from typing import Any

import msgspec
import pytest

from edgelm.devices.plan import plan
from edgelm.devices.profile import Efficiency, Profile
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import Plan, Request
from edgelm.spec import DecoderSpec
from tests.core.test_spec import CONFIG, EMBEDDING, LINEAR, VECTORS

PROFILE = Profile(
    name="toaster",
    description="a toaster",
    engine="onnxruntime",
    dialect="ort",
    precisions=("fp32", "int8", "int4"),
    kv=("fp32", "int8"),
    memory_bytes=2_000_000,
    usable_fraction=0.5,
    bandwidth_gb_s=1.0,
    dense_gflops={"fp32": 1.0, "int8": 2.0, "int4": 4.0},
    runtime_bytes=10_000,
    default_context=48,
    prefill_chunk=16,
    efficiency=Efficiency(bandwidth=0.5, prefill=0.25, layer_overhead_us=3.0),
)
SPEC = DecoderSpec.from_hf(CONFIG)
# 4-bit weights in groups of 64 with zero points: 4 + 20/64 bits.
BITS = 4.3125
# One of a real size, Llama-like, for directions and advice.
BIG = DecoderSpec.from_hf(
    CONFIG
    | {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_000,
        "max_position_embeddings": 131_072,
    }
)
ROOMY = msgspec.structs.replace(
    PROFILE, memory_bytes=64 * 10**9, default_context=8192, prefill_chunk=128
)


def with_memory(budget: float) -> Profile:
    return msgspec.structs.replace(ROOMY, memory_bytes=int(2 * budget))


def test_worked_example() -> None:
    result = plan(SPEC, PROFILE, Request("int4"))
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
    assert result.total_bytes == (
        weights + result.kv_bytes + result.workspace_bytes + result.runtime_bytes
    )
    assert result.budget_bytes == 1_000_000
    assert result.fits
    assert result.advice == ()


def test_worked_times() -> None:
    result = plan(SPEC, PROFILE, Request("int4"))
    # All weights but the input embedding at half of 1 GB/s, and 3 us for each layer.
    moved = result.weight_bytes - EMBEDDING * BITS / 8
    assert result.decode_ms == pytest.approx(1e3 * moved / 0.5e9 + 2 * 3e-3)
    assert result.binds == "per-layer overhead"
    # 512 tokens against 512 keys, at a quarter of 4 GFLOP/s.
    flops = 2 * LINEAR * 512 + 2 * 4 * 8 * 512 * 512
    assert result.prefill_512_ms == pytest.approx(1e3 * flops / 1e9)


def test_a_tied_embedding_is_read_once_as_the_head() -> None:
    tied = DecoderSpec.from_hf(CONFIG | {"tie_word_embeddings": True})
    untied = plan(SPEC, PROFILE, Request("int4"))
    assert plan(tied, PROFILE, Request("int4")).decode_ms == pytest.approx(untied.decode_ms)


def test_a_large_model_is_bound_by_bandwidth() -> None:
    assert plan(BIG, ROOMY, Request("int4")).binds == "memory bandwidth"


def test_memory_grows_with_the_context() -> None:
    plans = [plan(BIG, ROOMY, Request("int8", context=n)) for n in (2, 256, 1024, 8192, 131_072)]
    totals = [result.total_bytes for result in plans]
    assert totals == sorted(set(totals))
    assert len({result.weight_bytes for result in plans}) == 1


def test_fewer_bits_are_smaller_and_faster() -> None:
    names = ["fp32", "int8", "auto", "int4"]
    plans = [plan(BIG, ROOMY, Request(name, kv="int8")) for name in names]
    for field in ("weight_bytes", "total_bytes", "decode_ms"):
        values = [getattr(result, field) for result in plans]
        assert values == sorted(set(values), reverse=True)


@pytest.mark.parametrize(
    ("over", "smaller", "larger"),
    [
        ({"kv": "int8"}, Request("int4", kv="int8"), Request("int4", kv="fp32")),
        ({}, Request("int4", group_size=128), Request("int4", group_size=16)),
        ({}, Request("int4", symmetric=True), Request("int4", symmetric=False)),
    ],
    ids=["cache", "group-size", "symmetry"],
)
def test_options_count(over: dict[str, Any], smaller: Request, larger: Request) -> None:
    assert plan(BIG, ROOMY, smaller).total_bytes < plan(BIG, ROOMY, larger).total_bytes


def test_fp32_goes_with_an_fp32_cache() -> None:
    assert plan(SPEC, PROFILE, Request("fp32")).kv == "fp32"
    assert plan(SPEC, PROFILE, Request("fp32", kv="int8")).kv == "int8"
    assert plan(SPEC, PROFILE, Request()).kv == "int8"


@pytest.mark.parametrize(
    ("asked", "default", "given"),
    [(None, 48, 48), (None, 1000, 64), (64, 48, 64), (2, 48, 2)],
    ids=["device's", "model's", "most", "least"],
)
def test_context(asked: int | None, default: int, given: int) -> None:
    profile = msgspec.structs.replace(PROFILE, default_context=default)
    assert plan(SPEC, profile, Request(context=asked)).context == given


@pytest.mark.parametrize("asked", [0, -5, 1, 65])
def test_context_beyond_the_model(asked: int) -> None:
    with pytest.raises(BadInput, match=f"context {asked} is not possible: expected 2 to 64"):
        plan(SPEC, PROFILE, Request(context=asked))


def test_unknown_precision() -> None:
    with pytest.raises(UnknownName, match=r"unknown precision 'int3'; known: auto, fp32, int8"):
        plan(SPEC, PROFILE, Request("int3"))


def test_what_the_device_lacks() -> None:
    bare = msgspec.structs.replace(PROFILE, precisions=("int8",), kv=("int8",))
    with pytest.raises(UnknownName, match="toaster has no fp32; it has auto, int8"):
        plan(SPEC, bare, Request("fp32"))
    with pytest.raises(UnknownName, match="toaster has no fp32 cache; it has int8"):
        plan(SPEC, bare, Request("int8", kv="fp32"))


def advised(advice: str, request: Request) -> Request:
    """The request changed as the advice says."""
    match = re.match(r"--(context|precision) (\w+)", advice)
    assert match, advice
    value: Any = int(match[2]) if match[1] == "context" else match[2]
    return msgspec.structs.replace(request, **{match[1]: value})


def unfit(precision: str, share: float) -> tuple[Request, Profile, Plan]:
    """A request, a device with that share of the memory it needs, and its plan."""
    request = Request(precision, kv="int8", context=65_536)
    device = with_memory(share * plan(BIG, ROOMY, request).total_bytes)
    return request, device, plan(BIG, device, request)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_unfit_model_is_told_how_much_and_what_to_change(precision: str, share: float) -> None:
    request, _, result = unfit(precision, share)
    assert not result.fits
    assert re.fullmatch(r"\d+\.\d+ [MG]B too much", result.advice[0])
    assert len(result.advice) > 1
    for advice in result.advice[1:]:
        if advice != "a smaller model":
            assert advised(advice, request) != request


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_all_advice_followed_makes_it_fit(precision: str, share: float) -> None:
    request, device, result = unfit(precision, share)
    if "a smaller model" not in result.advice:
        for advice in result.advice[1:]:
            request = advised(advice, request)
        assert plan(BIG, device, request).fits


def test_nothing_helps_but_a_smaller_model() -> None:
    result = plan(BIG, with_memory(10_000_000), Request("int4"))
    assert not result.fits
    assert result.advice[1:] == ("a smaller model",)


def test_exactly_full_fits() -> None:
    needed = plan(BIG, ROOMY, Request("int4")).total_bytes
    assert plan(BIG, with_memory(needed), Request("int4")).fits
    assert not plan(BIG, with_memory(needed - 1), Request("int4")).fits


def test_table_for_people() -> None:
    table = plan(BIG, with_memory(1e9), Request("int8")).table()
    lines = {line[:15].strip(): line[16:] for line in table.splitlines()[:-1]}
    assert lines["target"] == "toaster (onnxruntime, ort dialect)"
    assert lines["precision"] == "int8, int8 cache, context 8,192"
    assert lines["parameters"] == f"{BIG.parameters / 1e6:,.1f} M"
    assert lines["fits"] == "no"
    assert lines["total"].endswith(" of 1.00 GB")
    assert table.endswith("All figures are estimates from the device's profile.")
