"""Which class a mixture is judged by, and where each limit lies."""

import msgspec
import pytest

from edgelm.bundle.gates import GATES, Figures, GateClass, enforce, gate_class, passes
from edgelm.errors import GateFailed
from edgelm.quantize.precision import Fp32, Int4, Int8, KvType, WeightPrecision


@pytest.mark.parametrize(
    ("weights", "kv", "expected"),
    [
        ([Fp32()], "fp32", "fp32"),
        ([Fp32()], "int8", "8-bit"),
        ([Int8()], "fp32", "8-bit"),
        ([Fp32(), Int8()], "int8", "8-bit"),
        ([Int4()], "fp32", "4-bit"),
        ([Fp32(), Int4()], "fp32", "4-bit"),
        ([Fp32(), Int8(), Int4()], "int8", "4-bit"),
    ],
    ids=[
        "all-fp32",
        "fp32-int8-cache",
        "int8-fp32-cache",
        "fp32+int8",
        "int4-fp32-cache",
        "fp32+int4",
        "all-three",
    ],
)
def test_class_is_that_of_the_smallest_part(
    weights: list[WeightPrecision], kv: KvType, expected: GateClass
) -> None:
    assert gate_class(weights, kv) == expected


def at_the_limit(name: GateClass) -> Figures:
    limit = GATES[name]
    return Figures(limit.max_kl, limit.min_top1, limit.max_perplexity_ratio, 20.0, 100)


@pytest.mark.parametrize("name", list(GATES))
def test_the_limit_itself_passes(name: GateClass) -> None:
    assert passes(at_the_limit(name), name)
    enforce(at_the_limit(name), name)


@pytest.mark.parametrize("name", list(GATES))
@pytest.mark.parametrize(
    ("field", "by"),
    [("kl", 1.01), ("top1", 0.99), ("perplexity_ratio", 1.01), ("kl", float("nan"))],
    ids=["kl", "top-1", "perplexity", "not-a-number"],
)
def test_each_limit_alone_fails(name: GateClass, field: str, by: float) -> None:
    figures = at_the_limit(name)
    beyond = msgspec.structs.replace(figures, **{field: getattr(figures, field) * by})
    assert not passes(beyond, name)
    with pytest.raises(GateFailed, match=f"the {name} quality gate failed"):
        enforce(beyond, name)


def test_message_has_figures_limits_and_advice() -> None:
    with pytest.raises(GateFailed) as caught:
        enforce(Figures(0.25, 0.7, 1.2, 30.0, 100), "4-bit")
    message = str(caught.value)
    for part in (
        "the 4-bit quality gate failed",
        "KL 0.2500 (limit 0.1)",
        "top-1 70.0% (at least 85.0%)",
        "perplexity ×1.200 (limit ×1.08)",
        "--gate off",
    ):
        assert part in message


def test_where_only_the_cache_is_rounded_a_wider_one_is_advised() -> None:
    with pytest.raises(GateFailed, match="use --kv fp16, or --gate off"):
        enforce(Figures(0.25, 0.7, 1.2, 30.0, 100), "8-bit", wider_cache="fp16")


def test_more_bits_are_held_to_more() -> None:
    strict = [GATES["fp32"], GATES["8-bit"], GATES["4-bit"]]
    assert strict == sorted(strict, key=lambda limit: limit.max_kl)
    assert strict == sorted(strict, key=lambda limit: -limit.min_top1)
    assert strict == sorted(strict, key=lambda limit: limit.max_perplexity_ratio)
