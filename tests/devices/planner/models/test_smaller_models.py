"""Smaller shapes: each one works, and the next larger on its way does not."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.models.smaller_models import SmallerModel, _thinner, smaller_models
from edgelm.devices.planner.plan import choices
from edgelm.devices.planner.plan_text import smaller_models_table
from edgelm.devices.profile import Profile
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import following_mamba_heads, with_mamba_heads
from tests.checkpoints.models import tiny_config
from tests.devices.planner.test_plan import BIG, LAPTOP, LARGE, ORIN, ROOMY, SMALL

# So narrow that kernels' multiples would widen it.
NARROW = msgspec.structs.replace(SMALL, hidden_size=96, intermediate_size=40)
AXES = ["depth", "feed-forward width", "depth and width"]
# What a desktop leaves: an 8B does not fit in that.
SCARCE = PlanRequest(max_memory_bytes=5_000_000_000)
ASKED = {
    "8b-orin": (LARGE, ORIN, SCARCE),
    "8b-orin-fast": (LARGE, ORIN, PlanRequest(min_tokens_per_second=20)),
    "8b-laptop-fast": (LARGE, LAPTOP, PlanRequest(min_tokens_per_second=60, context=2048)),
    "1b-little": (BIG, ROOMY, PlanRequest(max_memory_bytes=900_000_000, context=4096)),
    "1b-int8": (BIG, ROOMY, PlanRequest("int8", max_memory_bytes=1_200_000_000)),
    "135m-fast": (SMALL, ORIN, PlanRequest(min_tokens_per_second=250)),
    "narrow": (NARROW, ROOMY, PlanRequest(min_tokens_per_second=280)),
}
each = pytest.mark.parametrize(("spec", "device", "request_"), ASKED.values(), ids=ASKED)


def resized(spec: DecoderSpec, layers: int, hidden: int, ffn: int) -> DecoderSpec:
    return msgspec.structs.replace(
        spec,
        num_hidden_layers=layers,
        layers=spec.layers[:layers],
        hidden_size=hidden,
        intermediate_size=ffn,
    )


def sizes(spec: DecoderSpec | SmallerModel) -> tuple[int, int, int]:
    return spec.num_hidden_layers, spec.hidden_size, spec.intermediate_size


def multiple(width: int) -> int:
    """What a width is cut to multiples of."""
    return 128 if width >= 1024 else 32 if width >= 256 else 8 if width >= 64 else 1


def share_of(width: int, percent: int) -> int:
    return int(width * percent / 100) // multiple(width) * multiple(width)


def larger(spec: DecoderSpec, shape: SmallerModel) -> Iterator[DecoderSpec]:
    """What is between a shape and the decoder that it was cut from, on the same way."""
    layers, hidden, ffn = sizes(spec)
    if shape.axis == "depth":
        for more in range(shape.num_hidden_layers + 1, layers):
            yield resized(spec, more, hidden, ffn)
    elif shape.axis == "feed-forward width":
        for more in range(shape.intermediate_size + 128, ffn, 128):
            yield resized(spec, layers, hidden, more)
    else:
        for share in range(99, 9, -1):
            cut = (round(layers * share / 100), share_of(hidden, share), share_of(ffn, share))
            if cut == sizes(shape):
                return
            yield resized(spec, *cut)
        raise AssertionError(f"{shape} is no share of {sizes(spec)}")


def works(spec: DecoderSpec, device: Profile, request: PlanRequest) -> bool:
    return any(choice.works for choice in choices(spec, device, request))


@each
def test_shape_works_and_is_what_it_says(
    spec: DecoderSpec, device: Profile, request_: PlanRequest
) -> None:
    assert not works(spec, device, request_)
    found = smaller_models(spec, device, request_)
    assert found
    for shape in found:
        cut = resized(spec, *sizes(shape))
        assert shape.parameters == cut.parameters < spec.parameters
        assert shape.plan == choices(cut, device, request_)[0]
        assert shape.plan.works


@each
def test_nothing_larger_on_the_same_way_works(
    spec: DecoderSpec, device: Profile, request_: PlanRequest
) -> None:
    for shape in smaller_models(spec, device, request_):
        assert not any(works(cut, device, request_) for cut in larger(spec, shape)), shape.axis


@each
def test_each_way_at_most_once_and_largest_first(
    spec: DecoderSpec, device: Profile, request_: PlanRequest
) -> None:
    found = smaller_models(spec, device, request_)
    axes = [shape.axis for shape in found]
    assert set(axes) <= set(AXES)
    assert len(set(axes)) == len(axes)
    parameters = [shape.parameters for shape in found]
    assert parameters == sorted(parameters, reverse=True)


def test_all_ways_lead_an_8b_to_an_orin_nano() -> None:
    found = {shape.axis: shape for shape in smaller_models(LARGE, ORIN, SCARCE)}
    assert set(found) == set(AXES)
    assert sizes(found["depth"])[1:] == sizes(LARGE)[1:]
    assert sizes(found["feed-forward width"])[:2] == sizes(LARGE)[:2]
    assert all(a < b for a, b in zip(sizes(found["depth and width"]), sizes(LARGE), strict=True))


def test_one_layer_is_enough() -> None:
    shallower = resized(BIG, 15, 2048, 8192)
    needed = min(choice.total_bytes for choice in choices(shallower, ROOMY, PlanRequest()))
    found = smaller_models(BIG, ROOMY, PlanRequest(max_memory_bytes=needed))
    assert 15 in [shape.num_hidden_layers for shape in found if shape.axis == "depth"]


@pytest.mark.parametrize("axis", ["num_hidden_layers", "hidden_size", "intermediate_size"])
def test_asking_for_more_leaves_less(axis: str) -> None:
    def kept(rate: float) -> Any:
        found = smaller_models(LARGE, ORIN, PlanRequest(min_tokens_per_second=rate))
        return next(getattr(shape, axis) for shape in found if shape.axis == "depth and width")

    assert kept(60) < kept(40) < kept(20)


@pytest.mark.parametrize("name", ASKED)
def test_widths_are_multiples_that_kernels_like(name: str) -> None:
    spec, device, request_ = ASKED[name]
    found = {shape.axis: shape for shape in smaller_models(spec, device, request_)}
    both = found["depth and width"]
    assert both.hidden_size % multiple(spec.hidden_size) == 0
    assert both.intermediate_size % multiple(spec.intermediate_size) == 0


@pytest.mark.parametrize(
    ("hidden", "ffn"),
    [(8, 16), (63, 64), (96, 40), (255, 257), (576, 1023), (1024, 2048), (2048, 8192)],
)
def test_nothing_is_ever_widened(hidden: int, ffn: int) -> None:
    spec = resized(SMALL, 30, hidden, ffn)
    fastest = max(one.tokens_per_second.value for one in choices(spec, ROOMY, PlanRequest()))
    widths = set()
    for factor in (1.05, 1.3, 2, 4, 8):
        for shape in smaller_models(
            spec, ROOMY, PlanRequest(min_tokens_per_second=factor * fastest)
        ):
            assert all(a <= b for a, b in zip(sizes(shape), sizes(spec), strict=True))
            assert shape.parameters < spec.parameters
            if shape.axis == "depth and width":
                widths.add((shape.hidden_size, shape.intermediate_size))
                assert shape.hidden_size < hidden
                assert shape.intermediate_size < ffn
                assert shape.hidden_size % multiple(hidden) == 0
                assert shape.intermediate_size % multiple(ffn) == 0
    assert widths


def test_nothing_can_be_cut_that_far() -> None:
    assert smaller_models(LARGE, ORIN, PlanRequest(max_memory_bytes=1000)) == []
    assert smaller_models(LARGE, ORIN, PlanRequest(min_tokens_per_second=1e6)) == []


def test_shapes_survive_json() -> None:
    found = smaller_models(LARGE, ORIN, PlanRequest())
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[SmallerModel]) == found


@pytest.mark.parametrize("name", ["qwen3-moe", "granite-hybrid-moe", "gpt-oss"])
def test_mixtures_lose_layers_or_experts(name: str) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name, max_position_embeddings=64).to_dict())
    full = choices(spec, ROOMY, PlanRequest(context=64))[0].total_bytes
    request = PlanRequest(context=64, max_memory_bytes=full - 1)
    found = {shape.axis: shape for shape in smaller_models(spec, ROOMY, request)}
    assert set(found) == {"depth", "number of experts", "width of experts"}
    before = spec.mixtures[0]
    fewer, narrower = found["number of experts"], found["width of experts"]
    assert (fewer.num_experts, fewer.moe_intermediate_size) == (before.experts - 1, before.size)
    assert narrower.num_experts == before.experts
    assert narrower.moe_intermediate_size is not None
    assert narrower.moe_intermediate_size < before.size
    assert all(shape.parameters < spec.parameters for shape in found.values())
    assert "5 experts of" in smaller_models_table(list(found.values()))


@pytest.mark.parametrize(
    "name", ["gemma3n", "gemma4", "nemotron-h", "falcon-h1", "lfm2", "granite-hybrid"]
)
def test_families_whose_layers_differ(name: str) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name, max_position_embeddings=64).to_dict())
    full = choices(spec, ROOMY, PlanRequest(context=64))[0].total_bytes
    request = PlanRequest(context=64, max_memory_bytes=full - 1)
    found = {shape.axis: shape for shape in smaller_models(spec, ROOMY, request)}
    assert set(found) == set(AXES)
    assert found["feed-forward width"].intermediate_size < spec.intermediate_size
    assert found["depth and width"].hidden_size < spec.hidden_size
    assert found["depth"].num_hidden_layers == spec.num_hidden_layers - 1
    assert all(shape.parameters < spec.parameters for shape in found.values())


def test_heads_of_mamba_follow_the_hidden_size() -> None:
    """Each candidate is one that pruning accepts, and its parameters count the heads."""
    spec = DecoderSpec.from_hf(tiny_config("granite-hybrid", max_position_embeddings=64).to_dict())
    full = choices(spec, ROOMY, PlanRequest(context=64))[0].total_bytes
    request = PlanRequest(context=64, max_memory_bytes=full * 3 // 4)
    found = {shape.axis: shape for shape in smaller_models(spec, ROOMY, request)}
    both = found["depth and width"]
    heads = following_mamba_heads(spec, both.hidden_size)
    assert heads is not None
    cut = with_mamba_heads(resized(spec, *sizes(both)), heads)
    assert heads < 8
    assert both.parameters == cut.parameters


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_candidates_only_shrink(groups: int) -> None:
    """Bisection depends on it, also below the hidden sizes that heads in groups can follow."""
    config = tiny_config("granite-hybrid", mamba_n_groups=groups)
    candidates = list(_thinner(DecoderSpec.from_hf(config.to_dict())))
    parameters = [one.parameters for one in candidates]
    assert parameters == sorted(parameters, reverse=True)


def test_a_student_of_puzzle_has_no_smaller_models() -> None:
    """Pruning refuses layers of different sizes, so the hint would lead nowhere."""
    request = PlanRequest(min_tokens_per_second=250)
    assert smaller_models(SMALL, ORIN, request)
    for own in ({"intermediate_size": 512}, {"num_attention_heads": 3, "num_key_value_heads": 1}):
        first = msgspec.structs.replace(SMALL.layers[0], **own)
        uneven = msgspec.structs.replace(SMALL, layers=(first, *SMALL.layers[1:]))
        assert uneven.has_own_sizes
        assert smaller_models(uneven, ORIN, request) == []
