"""Shapes within a budget, through the real planner."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.checkpoint.source import read_spec
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.search.candidates import Candidate, CostModel, kind_of, table
from edgelm.compress.search.proposals import (
    choose_finalists,
    enumerate_shapes,
    largest_within,
    propose,
)
from edgelm.compress.search.settings import Budget, SearchSettings
from edgelm.devices.kernels import KERNELS
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config

ORIN = load_profile("jetson-orin-nano")
REQUEST = PlanRequest(precision="int8", context=512, prompt=128)
# Of the proportions of SmolLM2-135M, with fewer layers.
SMOL = DecoderSpec.from_hf(
    tiny_config(
        "llama",
        num_hidden_layers=6,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49_152,
        max_position_embeddings=8192,
    ).to_dict()
)


def candidate(layers: int, hidden: int, ffn: int = 96, **over: Any) -> Candidate:
    shape = Shape(layers, hidden, ffn, 4, 2)
    return Candidate(shape, over.pop("kind", "width"), 1, 1.0, 1.0, 1, **over)


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("over", [{}, {"hidden_size": 612, "intermediate_size": 1000}], ids=str)
def test_every_shape_has_kernels(engine: str, over: dict[str, int]) -> None:
    spec = msgspec.structs.replace(SMOL, **over)
    multiple = KERNELS[engine].width_multiple
    shapes = list(enumerate_shapes(spec, multiple, 0.4))
    full = Shape.from_spec(spec)
    assert len(set(shapes)) == len(shapes) > 50
    assert (full in shapes) == all(
        width % multiple == 0 for width in (full.hidden_size, full.intermediate_size)
    )
    for shape in shapes:
        shape.check_within(spec)
        widths = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads * 64
        assert not any(width % multiple for width in widths)
        sizes, whole = shape.sizes.values(), full.sizes.values()
        assert all(size >= int(0.4 * most) for size, most in zip(sizes, whole, strict=True))


def test_small_widths_are_enumerated_by_hand() -> None:
    spec = DecoderSpec.from_hf(tiny_config("llama").to_dict())
    shapes = list(enumerate_shapes(spec, 1, 0.5))
    assert {shape.hidden_size for shape in shapes} == {64, 56, 48, 40, 32}
    assert {shape.intermediate_size for shape in shapes} == {96, 88, 80, 72, 64, 56, 48}
    assert {shape.num_hidden_layers for shape in shapes} == {4, 3, 2}
    assert {shape.num_attention_heads for shape in shapes} == {4, 2}
    assert {shape.num_key_value_heads for shape in shapes} == {2}
    assert len(shapes) == 5 * 7 * 3 * 2


@pytest.mark.parametrize(
    ("name", "hidden", "layers"),
    [
        ("nemotron-h", {64, 56, 48, 40, 32}, {8, 7, 6, 5, 4}),
        ("falcon-h1", {64, 56, 48, 40, 32}, {4, 3, 2}),
        ("gemma4", {64, 56, 48, 40, 32}, {7, 6, 5, 4}),
        ("gemma3n", {64, 56, 48, 40, 32}, {7, 6, 5, 4}),
        ("lfm2", {64, 56, 48, 40, 32}, {5, 4, 3, 2}),
        ("granite-hybrid", {64, 48, 32}, {6, 5, 4, 3}),
        ("qwen3-moe", {64, 56, 48, 40, 32}, {4, 3, 2}),
    ],
)
def test_sizes_that_a_family_can_lose(name: str, hidden: set[int], layers: set[int]) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name).to_dict())
    shapes = list(enumerate_shapes(spec, 1, 0.5))
    assert {shape.hidden_size for shape in shapes} == hidden
    assert {shape.num_hidden_layers for shape in shapes} == layers
    for shape in shapes[::5]:
        shape.check_within(spec)
    least = [shape for shape in enumerate_shapes(spec, 1, 0.1) if shape.num_hidden_layers == 1]
    assert bool(least) == (name not in ("gemma3n", "gemma4")), "layers that others need stay"


def test_experts_by_hand() -> None:
    """Three quarters or half of them, or of their width; the only MLPs that OLMoE has."""
    spec = DecoderSpec.from_hf(tiny_config("olmoe").to_dict())
    shapes = list(enumerate_shapes(spec, 1, 0.5))
    found = {(shape.num_experts, shape.moe_intermediate_size) for shape in shapes}
    assert found == {(6, 96), (4, 96), (3, 96), (6, 72), (6, 48)}
    assert {shape.intermediate_size for shape in shapes} == {96}
    wide = {shape.moe_intermediate_size for shape in enumerate_shapes(spec, 32, 0.5)}
    assert wide == {96, 64, 32}
    few = {shape.num_experts for shape in enumerate_shapes(spec, 1, 0.6)}
    assert few == {6, 4}


def test_a_budget_of_memory_takes_experts() -> None:
    spec = DecoderSpec.from_hf(tiny_config("olmoe", num_hidden_layers=2).to_dict())
    request = PlanRequest(precision="int8", context=64, prompt=32)
    cost = CostModel(spec, load_profile("cpu"), Budget(0.85, None, request))
    found = propose(cost, SearchSettings(min_ratio=0.5))
    assert any((one.shape.num_experts or 0) < 6 for one in found)
    assert all(one.parameters <= 0.85 * spec.linear_parameters for one in found)


def test_kinds() -> None:
    full = Shape.from_spec(SMOL)
    smaller = msgspec.structs.replace
    assert kind_of(full, SMOL) == "unpruned"
    assert kind_of(smaller(full, num_hidden_layers=5), SMOL) == "depth"
    assert kind_of(smaller(full, num_attention_heads=6), SMOL) == "width"
    assert kind_of(smaller(full, num_hidden_layers=5, hidden_size=512), SMOL) == "depth and width"


def test_the_largest_by_hand() -> None:
    best, narrow, shallow = candidate(4, 48), candidate(4, 40), candidate(3, 64)
    refused = candidate(4, 64, missing=("memory",))
    inside = candidate(3, 40)
    # 4 x 48 exceeds 4 x 40 and 3 x 40; 3 x 64 is wider than it; what is refused exceeds nobody.
    assert largest_within([narrow, best, refused, shallow, inside]) == [best, shallow]
    assert largest_within([best, best]) == [best, best], "none exceeds its like"
    assert largest_within([refused]) == []


def test_finalists_by_hand() -> None:
    table = {
        "a": candidate(4, 40, kind="width", pruned=1.0),
        "b": candidate(4, 48, kind="width", pruned=2.0),
        "c": candidate(4, 56, kind="width", pruned=3.0),
        "d": candidate(3, 64, kind="depth", pruned=9.0),
        "e": candidate(2, 64, kind="depth", pruned=10.0),
    }
    every = list(table.values())
    assert choose_finalists(every, 3) == [table["a"], table["d"], table["b"]]
    assert choose_finalists(every, 1) == [table["a"]]
    assert choose_finalists(every, 9) == [table[name] for name in "adbce"]


def planned(shape: Shape) -> Any:
    return plan(shape.applied_to(SMOL), ORIN, REQUEST)


WHOLE = planned(Shape.from_spec(SMOL))
BUDGETS: dict[str, Any] = {
    "share": (Budget(parameters=0.6, request=REQUEST), "M parameters"),
    "number": (Budget(parameters=0.6 * SMOL.linear_parameters, request=REQUEST), "M parameters"),
    "memory": (
        Budget(
            request=msgspec.structs.replace(REQUEST, max_memory_bytes=WHOLE.total_bytes - 8_000_000)
        ),
        "of memory",
    ),
    "speed": (
        Budget(
            request=msgspec.structs.replace(
                REQUEST, min_tokens_per_second=1.2 * WHOLE.tokens_per_second.value
            )
        ),
        "speed",
    ),
    "first token": (
        Budget(first_token_ms=0.8 * WHOLE.prefill_ms.value, request=REQUEST),
        "first token",
    ),
}


def within(budget: Budget, shape: Shape) -> bool:
    """Whether the planner accepts a shape, without the search."""
    found, request = planned(shape), budget.request
    most = budget.parameters
    if most is not None and most <= 1:
        most *= SMOL.linear_parameters
    return bool(
        (most is None or shape.applied_to(SMOL).linear_parameters <= most)
        and found.total_bytes <= (request.max_memory_bytes or ORIN.budget_bytes)
        and found.tokens_per_second.value >= (request.min_tokens_per_second or 0)
        and found.prefill_ms.value <= (budget.first_token_ms or float("inf"))
    )


@pytest.mark.parametrize("name", BUDGETS)
def test_every_kind_of_budget_is_met(name: str) -> None:
    budget, lacking = BUDGETS[name]
    cost = CostModel(SMOL, ORIN, budget)
    assert lacking in cost(Shape.from_spec(SMOL)).missing[0], "the whole model is beyond it"
    shapes = list(enumerate_shapes(SMOL, 64, 0.4))
    proposed = propose(cost, SearchSettings(candidates=12))
    assert 0 < len(proposed) <= 12
    for one in proposed:
        assert within(budget, one.shape)
        larger = [
            shape
            for shape in shapes
            if shape != one.shape
            and all(map(int.__ge__, shape.sizes.values(), one.shape.sizes.values()))
        ]
        assert not any(within(budget, shape) for shape in larger), "a larger one is within it"


def test_candidates_are_spread_over_kinds() -> None:
    cost = CostModel(SMOL, ORIN, BUDGETS["share"][0])
    everything = propose(cost, SearchSettings(candidates=10_000))
    few = propose(cost, SearchSettings(candidates=6))
    assert {one.kind for one in few} == {one.kind for one in everything}
    assert len({one.kind for one in few}) > 1


def test_nothing_meets_the_budget() -> None:
    request = msgspec.structs.replace(REQUEST, min_tokens_per_second=1e6)
    cost = CostModel(SMOL, ORIN, Budget(request=request))
    with pytest.raises(DoesNotFit) as raised:
        propose(cost, SearchSettings(min_ratio=0.6))
    shapes = enumerate_shapes(SMOL, 64, 0.6)
    nearest = min(shapes, key=lambda shape: shape.applied_to(SMOL).linear_parameters)
    message = str(raised.value)
    assert f"no shape down to 60% of the model meets the budget on {ORIN.name}" in message
    assert f"the closest, {nearest}, exceeds: speed: " in message
    assert "tokens/s predicted, 1,000,000 required. Relax a limit" in message


def test_no_shape_has_kernels() -> None:
    spec = msgspec.structs.replace(SMOL, hidden_size=60)
    with pytest.raises(DoesNotFit, match="multiples of 64, which TensorRT needs for int4"):
        propose(CostModel(spec, ORIN, Budget(0.5, request=REQUEST)), SearchSettings())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"hidden_size": 500}, "hidden_size 500 is not a multiple of 64, .* use 448 or 512"),
        ({"intermediate_size": 1000}, "intermediate_size 1000 is not .* use 960 or 1024"),
    ],
)
def test_shapes_without_kernels_are_refused(size: dict[str, int], message: str) -> None:
    shape = msgspec.structs.replace(Shape.from_spec(SMOL), **size)
    with pytest.raises(BadInput, match=f"illegal shape for TensorRT: {message}"):
        CostModel(SMOL, ORIN, Budget()).check_kernels(shape)
    CostModel(SMOL, load_profile("cpu"), Budget()).check_kernels(shape)
    narrow = msgspec.structs.replace(SMOL, head_dim=32)
    with pytest.raises(BadInput, match=r"num_attention_heads \* head_dim 288 is not a multiple"):
        CostModel(narrow, ORIN, Budget()).check_kernels(Shape.from_spec(narrow))


def test_the_table_shows_speed_memory_and_quality() -> None:
    candidates = [
        msgspec.structs.replace(
            candidate(4, 48, pruned=1.25, distilled=(0.5, 0.375)),
            parameters=2_500_000,
            tokens_per_second=31.4,
            first_token_ms=210.0,
            memory_bytes=98_000_000,
        ),
        candidate(3, 40),
    ]
    _, first, second = table(candidates).splitlines()
    assert first.split("  ")[0] == "4 layers, hidden 48, FFN 96, heads 4/2"
    assert first.split()[-7:] == ["2.5", "31.4", "210", "98", "1.250", "0.500", "0.375"]
    assert second.split()[-2:] == ["-", "-"]


def test_the_search_is_of_the_spec_that_a_folder_has(bench: Path) -> None:
    spec = read_spec(bench / "teacher")
    cost = CostModel(spec, load_profile("cpu"), Budget(parameters=0.7))
    full = cost(Shape.from_spec(spec))
    assert full.parameters == spec.linear_parameters
    assert full.missing == ("0.1 M parameters, limit 0.1 M",)
    assert torch.isfinite(torch.tensor(full.tokens_per_second))


def test_shapes_beyond_the_budget_cost_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice takes a tenth of a second, and most of thousands of shapes are beyond a budget."""

    def advice(*_: object) -> tuple[str, ...]:
        raise AssertionError("nobody reads it")

    monkeypatch.setattr("edgelm.devices.planner.plan.advice", advice)
    spec = DecoderSpec.from_hf(tiny_config("llama").to_dict())
    budget = Budget(request=PlanRequest(min_tokens_per_second=1e12))
    cost = CostModel(spec, load_profile("cpu"), budget)
    assert "tokens/s predicted" in cost(Shape.from_spec(spec)).missing[0]


def test_shapes_that_transformers_refuses_are_not_proposed() -> None:
    """Llama's configuration class wants heads to divide the hidden size, Qwen3's does not."""
    shapes = list(enumerate_shapes(SMOL, 1, 0.4))
    assert all(shape.hidden_size % shape.num_attention_heads == 0 for shape in shapes)
    assert any(shape.hidden_size < SMOL.hidden_size for shape in shapes)
    qwen = msgspec.structs.replace(SMOL, family="qwen3")
    assert len(list(enumerate_shapes(qwen, 1, 0.4))) > len(shapes)
    uneven = Shape(6, 512, 1536, 9, 3)
    with pytest.raises(BadInput, match="hidden_size 512 is not a multiple of 9 heads"):
        uneven.check_within(SMOL)
    uneven.check_within(qwen)


def test_costs_of_the_layers_that_are_kept() -> None:
    spec = DecoderSpec.from_hf(tiny_config("nemotron-h", intermediate_size=2048).to_dict())
    shape = msgspec.structs.replace(Shape.from_spec(spec), num_hidden_layers=3)
    device, budget = load_profile("cpu"), Budget(request=PlanRequest(context=64))

    def parameters(*layers: int) -> int:
        return CostModel(spec, device, budget, lambda _: layers)(shape).parameters

    # Layers 1, 5 and 6 are MLPs of two matrices; the first three layers have one of them.
    mlp = 2 * 2048 * 64
    assert parameters(0, 1, 2) == CostModel(spec, device, budget)(shape).parameters
    assert parameters(2, 5, 6) > 2 * mlp > parameters(0, 1, 2) > mlp > parameters(0, 2, 3)
