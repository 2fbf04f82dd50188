"""Whether a build fits free memory and swap; and that plan, doctor and finalizer agree."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.detection.swap import SwapArea
from edgelm.devices.kernels import check_shape
from edgelm.devices.planner.estimate import estimate
from edgelm.devices.planner.memory.build_memory import build_peak, compiles, segment_bytes
from edgelm.devices.planner.memory.build_room import Room, plan_build, room_here, room_of
from edgelm.devices.planner.memory.weight_sizes import weight_sizes
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import Profile
from edgelm.errors import DoesNotFit
from edgelm.planning import Plan, PlanRequest
from edgelm.runtime.engines.tensorrt.build_preflight import check_build_memory
from edgelm.spec.decoder import DecoderSpec
from tests.core.spec.test_decoder import CONFIG
from tests.devices.test_profile import DELIVERED

GB = 1_000_000_000
PEAK = build_peak("tensorrt", [GB])


@pytest.mark.parametrize(
    ("room", "answer"),
    [
        (Room(PEAK), "fits"),
        (Room(PEAK - 1), "does not fit"),
        (Room(PEAK - 1, swap_bytes=1), "swaps"),
        (Room(PEAK - GB, swap_bytes=GB), "swaps"),
        (Room(PEAK - GB, zram_bytes=GB), "does not fit"),
        (Room(PEAK - GB, zram_bytes=2 * GB), "swaps"),
        # What the GPU works on cannot be swapped: the fixed part and one copy.
        (Room(1_500_000_000, swap_bytes=100 * GB), "swaps"),
        (Room(1_499_999_999, swap_bytes=100 * GB), "does not fit"),
    ],
)
def test_swap_counts_as_what_it_is(room: Room, answer: str) -> None:
    assert room.answer("tensorrt", [GB]) == answer


def test_the_room_of_a_machine() -> None:
    areas = [SwapArea("/swapfile", 8 * GB, GB), SwapArea("/dev/zram0", 2 * GB, 0)]
    room = room_here(5 * GB, areas)
    assert room == Room(5 * GB, swap_bytes=7 * GB, zram_bytes=2 * GB)
    assert room.describe() == (
        "5.00 GB are available, and 7.00 GB of swap, and 2.00 GB of zram, which gains half of that"
    )


def test_the_fewest_segments_that_fit_are_planned() -> None:
    parts = (GB // 10,) * 20
    whole = sum(parts)
    build = plan_build("tensorrt", parts, whole, Room(build_peak("tensorrt", [whole])))
    assert build is not None
    assert build.segments == 1
    fewer = plan_build("tensorrt", parts, whole, Room(4 * GB))
    assert fewer is not None
    assert fewer.segments > 1
    assert fewer.peak_bytes == build_peak("tensorrt", segment_bytes(parts, fewer.segments)) <= 4e9
    assert plan_build("onnxruntime", parts, whole, Room(1)) is None


def test_the_preflight_warns_where_it_takes_swap() -> None:
    lines: list[str] = []
    check_build_memory("tensorrt", [GB], Room(PEAK), lines.append)
    assert lines == []
    check_build_memory("tensorrt", [GB], Room(PEAK - GB, swap_bytes=GB), lines.append)
    assert lines == [
        "compiling needs about 4.00 GB of memory, 3.00 GB are available, and 1.00 GB of swap: it "
        "will swap, which makes it several times slower"
    ]
    with pytest.raises(DoesNotFit, match=r"4\.00 GB of memory, 3\.00 GB are available; close"):
        check_build_memory("tensorrt", [GB], Room(PEAK - GB), lines.append)
    with pytest.raises(DoesNotFit, match="in 2 segments"):
        check_build_memory("tensorrt", [GB, GB], Room(GB), lines.append)


def shape(layers: int, hidden: int, ffn: int, heads: int, kv: int, vocab: int, **more: Any) -> Any:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    } | more


TIED = {"tie_word_embeddings": True}
SHAPES = {
    "SmolLM2-135M": shape(30, 576, 1536, 9, 3, 49_152, **TIED),
    "SmolLM2-360M": shape(32, 960, 2560, 15, 5, 49_152, **TIED),
    "Qwen3-0.6B": shape(28, 1024, 3072, 16, 8, 151_936, head_dim=128, **TIED),
    "Llama-3.2-1B": shape(16, 2048, 8192, 32, 8, 128_256, **TIED),
    "Qwen3-1.7B": shape(28, 2048, 6144, 16, 8, 151_936, head_dim=128, **TIED),
    "Llama-3.2-3B": shape(28, 3072, 8192, 24, 8, 128_256, **TIED),
    "Qwen3-4B": shape(36, 2560, 9728, 32, 8, 151_936, head_dim=128, **TIED),
    "Minitron-4B": shape(32, 3072, 9216, 32, 8, 128_256, head_dim=128),
    "Llama-3.1-8B": shape(32, 4096, 14_336, 32, 8, 128_256),
    "Qwen3-14B": shape(40, 5120, 17_408, 40, 8, 151_936, head_dim=128),
    "Qwen3-32B": shape(64, 5120, 25_600, 64, 8, 151_936, head_dim=128),
    "Llama-3.1-70B": shape(80, 8192, 28_672, 64, 8, 128_256),
}
SPECS = {name: DecoderSpec.from_hf(CONFIG | config) for name, config in SHAPES.items()}


def accepted(planned: Plan, segments: tuple[int, ...], room: Room) -> bool:
    """Whether the finalizer compiles the bundle of a plan on a machine with this room."""
    try:
        check_build_memory(planned.engine, segments, room, progress=lambda line: None)
    except DoesNotFit:
        return False
    return True


def segments_of(planned: Plan, spec: DecoderSpec, profile: Profile) -> tuple[int, ...]:
    """Bytes of the segments of the bundle that a plan stands for."""
    request = PlanRequest(planned.precision, planned.kv, engine=planned.engine)
    sizes = weight_sizes(spec, profile, profile.engine(planned.engine), request)
    if planned.build_segments == 1:
        return (sizes.total_bytes,)
    return segment_bytes(sizes.parts, planned.build_segments)


def plans_of(profile: Profile, spec: DecoderSpec) -> list[Plan]:
    """Plans with the widest and the narrowest weights of every engine that is compiled."""
    found = []
    for engine in profile.engines:
        if compiles(engine.name):
            check_shape(spec, engine.name)
            for precision in ("auto", engine.precisions[0], engine.precisions[-1]):
                asked = PlanRequest(precision, engine=engine.name)
                found.append(estimate(spec, profile, asked))
    return found


@pytest.mark.parametrize("name", sorted(DELIVERED))
def test_what_is_planned_to_work_is_accepted_and_nothing_else_builds(name: str) -> None:
    profile = DELIVERED[name]
    room = room_of(profile)
    for spec in SPECS.values():
        for planned in plans_of(profile, spec):
            segments = segments_of(planned, spec, profile)
            assert build_peak(planned.engine, segments) == planned.build_bytes
            assert accepted(planned, segments, room) == planned.builds
            if planned.works:
                assert accepted(planned, segments, room)


def test_an_orin_nano_builds_what_fits_it() -> None:
    nano = DELIVERED["jetson-orin-nano-8gb-super"]
    planned = {
        name: plan(spec, nano, PlanRequest("int4", context=2048)) for name, spec in SPECS.items()
    }
    assert [name for name, one in planned.items() if one.works and one.build_segments == 1] == [
        *("SmolLM2-135M", "SmolLM2-360M", "Qwen3-0.6B", "Llama-3.2-1B", "Qwen3-1.7B"),
    ]
    for name in ("Llama-3.2-3B", "Qwen3-4B", "Minitron-4B", "Llama-3.1-8B"):
        assert planned[name].works
        assert planned[name].build_segments > 1
    assert not planned["Qwen3-14B"].works


def test_too_little_memory_to_build_is_missing_and_said() -> None:
    nano = DELIVERED["jetson-orin-nano-8gb-super"]
    memory = msgspec.structs.replace(
        nano.memory, bytes=msgspec.structs.replace(nano.memory.reserved_bytes, value=7.0e9)
    )
    small = msgspec.structs.replace(nano, memory=memory)
    wide = msgspec.structs.replace(SPECS["Qwen3-4B"], vocab_size=260_000)
    planned = plan(wide, small, PlanRequest("int4", context=512))
    assert planned.fits
    assert not planned.builds
    assert planned.verdict == "cannot be built there"
    assert "of memory to compile the engine on the device" in planned.missing[0]


@pytest.mark.parametrize("name", ["jetson-xavier-nx", "jetson-agx-xavier"])
def test_what_edgelm_does_not_run_on_is_said(name: str) -> None:
    planned = plan(SPECS["SmolLM2-135M"], DELIVERED[name], PlanRequest("int8"))
    assert not planned.works
    assert planned.verdict == "does not run there"
    assert planned.missing[0].startswith("an engine that edgelm runs on: ")
    assert "TensorRT 8.5" in planned.missing[0]
    assert planned.advice == ("another device",)
