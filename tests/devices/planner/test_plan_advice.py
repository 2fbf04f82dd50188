"""What is refused, choices side by side, and what a plan that does not work lacks and advises."""

import math
import re
from typing import Any

import msgspec
import pytest

from edgelm.cli import format_bytes
from edgelm.devices.planner.plan import choices, plan
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import PlanRequest, range_text
from edgelm.quantize.precision import KV_BYTES, KvType
from tests.devices.planner.test_plan import (
    BIG,
    LAPTOP,
    LARGE,
    ORIN,
    ROOMY,
    SMALL,
    SPEC,
    TOASTER,
    with_memory,
)
from tests.devices.test_profile import DELIVERED


@pytest.fixture(autouse=True)
def _any_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that fit on paper, which no attention kernel takes (see test_kernels.py)."""
    monkeypatch.setattr("edgelm.devices.planner.estimate.check_shape", lambda *_: None)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            PlanRequest(context=0),
            "context 0 is not possible: expected 2 to 64 (the model's max_pos",
        ),
        (PlanRequest(context=1), "context 1 is not possible: expected 2 to 64"),
        (PlanRequest(context=65), "context 65 is not possible: expected 2 to 64"),
        (PlanRequest(prompt=0), "prompt 0 and batch 1: expected whole numbers above zero"),
        (PlanRequest(batch=-1), "prompt 512 and batch -1: expected whole numbers above zero"),
        (
            PlanRequest(max_memory_bytes=0),
            "a memory budget of 0 bytes; expected a size above zero",
        ),
        (PlanRequest(min_tokens_per_second=0), "0 tokens/s requested; expected a rate above zero"),
        (
            PlanRequest(min_tokens_per_second=-3),
            "-3 tokens/s requested; expected a rate above zero",
        ),
        (
            PlanRequest(min_tokens_per_second=math.nan),
            "nan tokens/s requested; expected a rate above",
        ),
        (
            PlanRequest(min_tokens_per_second=math.inf),
            "inf tokens/s requested; expected a rate above",
        ),
        (PlanRequest("int4", group_size=48), "group size 48 is not one of [16, 32, 64, 128, 256]"),
    ],
    ids=[
        *("no-context", "one", "beyond", "prompt", "batch", "memory"),
        *("rate", "negative", "nan", "endless", "group"),
    ],
)
def test_impossible_requests(request_: PlanRequest, message: str) -> None:
    for ask in (plan, choices):
        with pytest.raises(BadInput) as caught:
            ask(SPEC, TOASTER, request_)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            PlanRequest("int3"),
            "toaster has no int3 with onnxruntime; it has auto, fp32, int8, int4",
        ),
        (
            PlanRequest("fp16"),
            "toaster has no fp16 with onnxruntime; it has auto, fp32, int8, int4",
        ),
        (
            PlanRequest("fp32", engine="tensorrt"),
            "toaster has no fp32 with tensorrt; it has auto, fp16, int4",
        ),
        (
            PlanRequest("int4", kv="fp16"),
            "toaster has no fp16 cache with onnxruntime; it has fp32, int8 (fp16 with --engine "
            "tensorrt)",
        ),
        (PlanRequest(engine="vllm"), "toaster has no engine 'vllm'; it has onnxruntime, tensorrt"),
        (PlanRequest(power_mode="black"), "toaster has no power mode 'black'; it has brown, pale"),
    ],
    ids=["precision", "not-here", "not-with-it", "cache", "engine", "power-mode"],
)
def test_unknown_names(request_: PlanRequest, message: str) -> None:
    for ask in (plan, choices):
        with pytest.raises(UnknownName) as caught:
            ask(SPEC, TOASTER, request_)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kv", [None, "fp16"])
def test_choices_of_a_precision_that_a_delivered_engine_lacks(kv: KvType | None) -> None:
    expected = (
        r"^jetson-agx-orin-64gb has no fp32 with tensorrt; it has auto, fp16, int8, w8a8, int4$"
    )
    with pytest.raises(UnknownName, match=expected):
        choices(SMALL, DELIVERED["jetson-agx-orin-64gb"], PlanRequest("fp32", kv=kv))


def test_choices_are_every_precision_and_cache() -> None:
    pairs = [(one.precision, one.kv) for one in choices(BIG, ROOMY, PlanRequest())]
    # Nearest to the source first; no rounded cache beside fp32 weights unless it is asked for.
    assert pairs == [
        ("fp32", "fp32"),
        ("int8", "fp32"),
        ("int8", "int8"),
        ("int4", "fp32"),
        ("int4", "int8"),
    ]
    assert {one.kv for one in choices(BIG, ROOMY, PlanRequest(kv="int8"))} == {"int8"}
    assert {one.precision for one in choices(BIG, ROOMY, PlanRequest("int4"))} == {"int4"}
    rounded = choices(BIG, ROOMY, PlanRequest("fp32", kv="int8"))
    assert [(one.precision, one.kv) for one in rounded] == [("fp32", "int8")]


@pytest.mark.parametrize("rate", [None, 0.05, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("gigabytes", [0.1, 1.5, 3, 64])
def test_choices_rank_what_works_before_what_fits(gigabytes: float, rate: float | None) -> None:
    ranked = choices(BIG, with_memory(gigabytes * 1e9), PlanRequest(min_tokens_per_second=rate))
    quality = ["fp32", "int8", "int4"]
    classes = [0 if one.works else 1 if one.fits else 2 for one in ranked]
    assert classes == sorted(classes)
    working = [(quality.index(one.precision), -KV_BYTES[one.kv]) for one in ranked if one.works]
    assert working == sorted(working)
    slow = [one.decode_ms.value for one in ranked if one.fits and not one.works]
    assert slow == sorted(slow)
    unfit = [one.total_bytes for one in ranked if not one.fits]
    assert unfit == sorted(unfit)


def followed(advice: str, request: PlanRequest) -> PlanRequest:
    """The request changed as a line of advice says."""
    assert re.fullmatch(r"(--(context|precision|kv) \w+ ?)+", advice), advice
    changes: dict[str, Any] = dict(re.findall(r"--(\w+) (\w+)", advice))
    if "context" in changes:
        changes["context"] = int(changes["context"])
    return msgspec.structs.replace(request, **changes)


# Requests that the model of a billion parameters does not meet, and what is advised.
ASKED = {
    "cache": (ROOMY, PlanRequest("int8", kv="int8", context=65_536, max_memory_bytes=2 * 10**9), 1),
    "wide-cache": (ROOMY, PlanRequest("int8", kv="fp32", max_memory_bytes=25 * 10**8), 2),
    "bits": (ROOMY, PlanRequest("fp32", max_memory_bytes=3 * 10**9), 1),
    "all": (ROOMY, PlanRequest("fp32", context=131_072, max_memory_bytes=3 * 10**9), 1),
    "slow": (ROOMY, PlanRequest("fp32", min_tokens_per_second=0.6), 1),
    "laptop": (LAPTOP, PlanRequest("fp16", context=131_072, batch=2), 1),
    "orin": (ORIN, PlanRequest("fp16", context=131_072), 2),
    "orin-slow": (ORIN, PlanRequest("fp16", min_tokens_per_second=50), 1),
    "orin-little": (ORIN, PlanRequest("int4", max_memory_bytes=2_500_000_000, context=65_536), 1),
}


@pytest.mark.parametrize(("device", "request_", "count"), ASKED.values(), ids=ASKED)
def test_every_line_of_advice_works(device: Profile, request_: PlanRequest, count: int) -> None:
    for spec in (BIG, LARGE):
        result = plan(spec, device, request_)
        assert not result.works
        options = [line for line in result.advice if line.startswith("--")]
        assert len(options) == count or spec is LARGE
        assert result.advice == (tuple(options) or ("a smaller model",))
        for option in options:
            changed = followed(option, request_)
            assert changed != request_
            assert plan(spec, device, changed).works, option


def test_advice_may_be_to_change_all_three() -> None:
    device, request_, _ = ASKED["all"]
    advice = plan(BIG, device, request_).advice[0]
    assert re.fullmatch(r"--precision int4 --kv int8 --context \d+", advice)


def test_what_is_missing_is_no_advice() -> None:
    unfit = plan(BIG, ROOMY, PlanRequest("int8", max_memory_bytes=10**9))
    lacking = format_bytes(unfit.total_bytes - 10**9)
    assert unfit.missing == (f"{lacking} of memory",)
    slow = plan(BIG, ROOMY, PlanRequest("int8", min_tokens_per_second=1.5))
    rate = range_text(slow.tokens_per_second)
    assert slow.missing == (f"speed: {rate} tokens/s predicted, 1.5 required",)
    both = plan(BIG, ROOMY, PlanRequest("fp32", max_memory_bytes=10**9, min_tokens_per_second=99))
    assert [line.split()[-1] for line in both.missing] == ["memory", "required"]
    assert both.advice == ("a smaller model",)


def test_what_works_misses_nothing() -> None:
    fine = plan(BIG, ROOMY, PlanRequest("int4", min_tokens_per_second=0.1))
    assert fine.works
    assert fine.missing == fine.advice == ()


def test_choices_leave_missing_and_advice_to_the_plan() -> None:
    for one in choices(BIG, ROOMY, PlanRequest(max_memory_bytes=10**9)):
        assert not one.works
        assert one.missing == one.advice == ()


def test_advised_context_is_the_longest_in_steps_of_256() -> None:
    device, request_, _ = ASKED["cache"]
    longest = followed(plan(BIG, device, request_).advice[0], request_)
    assert longest.context is not None
    assert longest.context % 256 == 0
    more = msgspec.structs.replace(longest, context=longest.context + 256)
    assert not plan(BIG, device, more).fits


def test_nothing_helps_but_a_smaller_model() -> None:
    result = plan(BIG, with_memory(10_000_000), PlanRequest("int4"))
    assert not result.fits
    assert result.advice == ("a smaller model",)


def test_a_model_of_a_single_position() -> None:
    single = msgspec.structs.replace(SPEC, max_position_embeddings=1)
    with pytest.raises(BadInput, match="max_position_embeddings is 1, expected at least 2"):
        plan(single, TOASTER, PlanRequest())
