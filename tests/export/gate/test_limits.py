"""The gate's limits follow from the request, and not from what it was answered with."""

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from edgelm.bundle import read_manifest
from edgelm.bundle.records.gates import GATES, Figures, looser, passes
from edgelm.errors import GateFailed
from edgelm.export.choose import requested_limits
from edgelm.export.gate.limits import GateLimits, limits_of_mixture
from edgelm.export.pipeline import export_model
from edgelm.export.request import ExportRequest
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import PRECISIONS, Fp32, Int4, Int8, KvType, WeightPrecision

WEIGHTS = {"layers.0.mlp.down": 100, "layers.1.mlp.down": 100, "lm_head": 800}
# From the most precise.
ORDER = [PRECISIONS[name] for name in ("fp32", "fp16", "int8", "int4")]


def target(precisions: tuple[str, ...] = ("int8", "int4"), kv: KvType = "int8") -> Any:
    engine = SimpleNamespace(precisions=precisions)
    return SimpleNamespace(engine=engine, weights=WEIGHTS, plan=SimpleNamespace(kv=kv))


def limits(
    precision: str, exceptions: dict[str, str], outcome: dict[str, WeightPrecision]
) -> GateLimits:
    request = ExportRequest(PlanRequest(precision), exceptions)
    return requested_limits(request, target(), outcome)


def test_auto_is_compared_with_the_same_limits_whatever_it_finds() -> None:
    assert limits("auto", {}, {}) == ("4-bit", GATES["4-bit"])
    request = ExportRequest(PlanRequest("auto"))
    assert requested_limits(request, target(("int8",)), {}) == ("8-bit", GATES["8-bit"])


def test_a_matrix_that_falls_back_to_more_bits_makes_nothing_stricter() -> None:
    as_requested: dict[str, WeightPrecision] = dict.fromkeys(WEIGHTS, Int4())
    fallen_back: dict[str, WeightPrecision] = dict.fromkeys(WEIGHTS, Int8())
    assert limits("int4", {}, fallen_back) == limits("int4", {}, as_requested)
    assert limits("int4", {}, fallen_back) == ("4-bit", GATES["4-bit"])


def test_exceptions_count_by_their_weights() -> None:
    outcome: dict[str, WeightPrecision] = dict.fromkeys(WEIGHTS, Int8())
    name, found = limits("int8", {"layers.0.*": "int4"}, outcome)
    assert name == "4-bit"
    assert found.max_kl == pytest.approx(0.9 * 0.01 + 0.1 * 0.1)
    assert limits("int8", {}, outcome) == ("8-bit", GATES["8-bit"])


def test_a_cache_of_8_bits_has_the_limits_of_8_bits() -> None:
    plain: dict[str, WeightPrecision] = dict.fromkeys(WEIGHTS, Fp32())
    assert limits_of_mixture(plain, WEIGHTS, "fp32") == ("fp32", GATES["fp32"])
    assert limits_of_mixture(plain, WEIGHTS, "int8") == ("8-bit", GATES["8-bit"])
    four: dict[str, WeightPrecision] = dict.fromkeys(WEIGHTS, Int4())
    assert limits_of_mixture(four, WEIGHTS, "int8") == ("4-bit", GATES["4-bit"])


@pytest.mark.parametrize("seed", range(100))
def test_fewer_bits_never_have_stricter_limits(seed: int) -> None:
    random = Random(seed)
    kv: KvType = random.choice(["fp32", "fp16", "int8"])
    ranks = {group: random.randrange(len(ORDER)) for group in WEIGHTS}
    lower = {group: random.randrange(rank, len(ORDER)) for group, rank in ranks.items()}
    before, after = (
        limits_of_mixture({group: ORDER[rank] for group, rank in one.items()}, WEIGHTS, kv)
        for one in (ranks, lower)
    )
    assert looser(before.threshold, after.threshold) == after.threshold
    good = Figures(before.threshold.max_kl, before.threshold.min_top1, 1.0, 20.0, 100)
    assert passes(good, after.threshold)


def test_the_manifest_says_what_a_mixture_was_compared_with(
    tiny_chat: Path, tmp_path: Path
) -> None:
    export_model(
        tiny_chat,
        tmp_path / "bundle",
        precision="fp32",
        kv="fp32",
        exceptions={"lm_head": "int8"},
        gate="off",
    )
    gate = read_manifest(tmp_path / "bundle").gate
    assert gate is not None
    assert gate.gate_class == "8-bit"
    assert gate.limits is not None
    assert gate.limits == gate.threshold
    assert GATES["fp32"].max_kl < gate.limits.max_kl < GATES["8-bit"].max_kl
    assert gate.passed == passes(gate.figures, gate.limits)


def test_a_mixture_that_misses_its_limits_is_refused_with_them(
    tiny_chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateFailed, match=r"the 4-bit quality gate failed: KL .* \(limit 0\.0\d+"):
        export_model(
            tiny_chat,
            tmp_path / "bundle",
            precision="int8",
            exceptions={"layers.0.mlp.down": "int4", "layers.1.mlp.gate_up": "int4"},
        )
