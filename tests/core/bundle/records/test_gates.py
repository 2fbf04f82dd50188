"""Which class a mixture is judged by, and where each limit lies."""

from random import Random

import msgspec
import pytest

from edgelm.bundle.records.gates import (
    GATES,
    Figures,
    GateClass,
    GateResult,
    blended,
    enforce,
    gate_class,
    looser,
    passes,
)
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


def gate(figures: Figures, name: GateClass) -> GateResult:
    return GateResult(name, figures, passed=False, enforced=True, text="", text_sha256="")


@pytest.mark.parametrize("name", list(GATES))
def test_the_limit_itself_passes(name: GateClass) -> None:
    assert passes(at_the_limit(name), GATES[name])
    enforce(gate(at_the_limit(name), name))


@pytest.mark.parametrize("name", list(GATES))
@pytest.mark.parametrize(
    ("field", "by"),
    [("kl", 1.01), ("top1", 0.99), ("perplexity_ratio", 1.01), ("kl", float("nan"))],
    ids=["kl", "top-1", "perplexity", "not-a-number"],
)
def test_each_limit_alone_fails(name: GateClass, field: str, by: float) -> None:
    figures = at_the_limit(name)
    beyond = msgspec.structs.replace(figures, **{field: getattr(figures, field) * by})
    assert not passes(beyond, GATES[name])
    with pytest.raises(GateFailed, match=f"the {name} quality gate failed"):
        enforce(gate(beyond, name))


def test_message_has_figures_limits_and_advice() -> None:
    with pytest.raises(GateFailed) as caught:
        enforce(gate(Figures(0.25, 0.7, 1.2, 30.0, 100), "4-bit"))
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
        enforce(gate(Figures(0.25, 0.7, 1.2, 30.0, 100), "8-bit"), wider_cache="fp16")


def test_more_bits_are_held_to_more() -> None:
    strict = [GATES["fp32"], GATES["8-bit"], GATES["4-bit"]]
    assert strict == sorted(strict, key=lambda limit: limit.max_kl)
    assert strict == sorted(strict, key=lambda limit: -limit.min_top1)
    assert strict == sorted(strict, key=lambda limit: limit.max_perplexity_ratio)


CLASSES = list(GATES)  # from the most precise


@pytest.mark.parametrize("name", CLASSES)
def test_a_mixture_of_one_class_has_its_limits(name: GateClass) -> None:
    assert blended({name: 1.0}) == GATES[name]


def test_limits_of_a_mixture_by_hand() -> None:
    half = blended({"8-bit": 0.5, "4-bit": 0.5})
    assert half.max_kl == pytest.approx(0.055)
    assert 1 - half.min_top1 == pytest.approx((0.5 * 0.06**2 + 0.5 * 0.15**2) ** 0.5)
    assert half.max_perplexity_ratio == pytest.approx((1.02 * 1.08) ** 0.5)


@pytest.mark.parametrize("seed", range(200))
def test_less_precision_never_has_stricter_limits(seed: int) -> None:
    """Move some weights of a random mixture to a class of fewer bits."""
    random = Random(seed)
    parts = [random.random() for _ in CLASSES]
    shares = {name: part / sum(parts) for name, part in zip(CLASSES, parts, strict=True)}
    more, fewer = sorted(random.sample(range(len(CLASSES)), 2))
    moved = random.random() * shares[CLASSES[more]]
    lower = dict(shares)
    lower[CLASSES[more]] -= moved
    lower[CLASSES[fewer]] += moved
    before, after = blended(shares), blended(lower)
    assert looser(before, after) == after
    # No jump: the limit rises by no more than the share of weights that lost precision.
    assert after.max_kl - before.max_kl <= moved * GATES["4-bit"].max_kl + 1e-12


def test_one_int4_matrix_does_not_buy_the_limits_of_4_bits() -> None:
    limit = blended({"8-bit": 0.995, "4-bit": 0.005})
    worse = Figures(kl=0.05, top1=0.9, perplexity_ratio=1.04, perplexity=20.0, tokens=100)
    assert passes(worse, GATES["4-bit"])
    assert not passes(worse, limit)
    assert limit.max_kl == pytest.approx(0.01, rel=0.05)
