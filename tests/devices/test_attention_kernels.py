"""What caches cost with ONNX Runtime on CUDA, and which ones are refused; said beforehand."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.attention_kernels import cache_notes, check_cache, check_context, has_cache
from edgelm.devices.kernels import check_shape
from edgelm.devices.planner.configuration import listed_caches
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config
from tests.core.spec.test_decoder import spec_of

CUDA = "onnxruntime-cuda"


def notes(engine: str = CUDA, kv: Any = "int8", **config: Any) -> tuple[str, ...]:
    shape = {"hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    return cache_notes(spec_of(**shape | config), engine, kv)


def test_nothing_to_say_where_the_fast_kernel_takes_the_shape() -> None:
    assert notes() == notes(kv="fp8") == notes(head_dim=128) == ()


@pytest.mark.parametrize(("engine", "kv"), [("onnxruntime", "int8"), (CUDA, "fp16")])
def test_nothing_to_say_of_other_caches(engine: str, kv: str) -> None:
    assert notes(engine, kv, num_attention_heads=6, head_dim=48) == ()


def test_groups_of_heads_that_it_does_not_take() -> None:
    assert notes(num_attention_heads=6) == (
        "the fast kernel for an int8 cache does not support 3 query heads per key head (expected "
        "4, 8, 16 or 32): decoding is slower than with a 16-bit cache",
    )


def test_everything_that_it_does_not_take_is_named() -> None:
    [note] = notes(kv="fp8", model_type="mistral", sliding_window=8, head_dim=48)
    assert (
        "an fp8 cache does not support heads of 48 channels (expected 64, 128 or 256) and" in note
    )


def test_a_plan_says_it() -> None:
    spec = spec_of(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=64)
    device = load_profile("laptop-rtx-4060")
    asked = plan(spec, device, PlanRequest("int4", kv="int8", engine=CUDA))
    assert f"note            {asked.notes[0]}" in asked.table().splitlines()
    assert plan(spec, device, PlanRequest("int4", engine=CUDA)).notes == ()


def gemma(name: str, **over: Any) -> DecoderSpec:
    """A tiny model with heads as wide as the published ones."""
    return DecoderSpec.from_hf(tiny_config(name, **over).to_dict())


WIDE = gemma("gemma4-dense", global_head_dim=512)
SHARED = gemma("gemma3n", head_dim=256)


@pytest.mark.parametrize("spec", [WIDE, SHARED, gemma("gemma4", global_head_dim=512)])
def test_layers_with_heads_of_their_own_are_taken(spec: DecoderSpec) -> None:
    check_shape(spec, CUDA)
    check_cache(spec, CUDA, "bf16")


def test_wider_heads_than_the_kernels_take() -> None:
    message = r"does not support a head_dim of 528 \(expected at most 512\); onnxruntime .* can"
    with pytest.raises(BadInput, match=message):
        check_shape(gemma("gemma4", global_head_dim=528), CUDA)


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (WIDE, "its kernels for heads of 512 channels take 16 bits only"),
        (SHARED, "its kernels take no 8-bit keys and values of another layer"),
    ],
)
def test_caches_of_8_bits_that_no_kernel_takes(spec: DecoderSpec, why: str, kv: KvType) -> None:
    with pytest.raises(BadInput, match=f"an {kv} cache: {why}; leave out --kv {kv}"):
        check_cache(spec, CUDA, kv)
    assert not has_cache(spec, CUDA, kv)
    assert has_cache(spec, CUDA, "fp16")
    check_cache(spec, "onnxruntime", kv)


def test_plans_list_the_caches_that_there_are() -> None:
    device = load_profile("laptop-rtx-4060")
    asked = PlanRequest("int4", engine=CUDA)
    for spec, expected in ((WIDE, ("bf16",)), (gemma("gemma3"), ("bf16", "int8"))):
        assert listed_caches(spec, device, device.engine(CUDA), asked) == expected
        assert plan(spec, device, asked).kv == "bf16"
    with pytest.raises(BadInput, match="take 16 bits only"):
        plan(WIDE, device, PlanRequest("int4", kv="int8", engine=CUDA))


def test_wide_heads_are_copied_for_each_query_head() -> None:
    [note] = cache_notes(WIDE, CUDA, "bf16")
    assert "heads of 512 channels copy their keys and values for each of 4 query heads" in note
    assert cache_notes(gemma("gemma4-dense", global_head_dim=256), CUDA, "bf16") == ()
    assert cache_notes(WIDE, "tensorrt-rtx", "bf16") == ()
    alone = msgspec.structs.replace(
        WIDE,
        layers=tuple(msgspec.structs.replace(one, num_key_value_heads=4) for one in WIDE.layers),
    )
    assert cache_notes(alone, CUDA, "bf16") == (), "keys for each query head already"


def test_rows_of_a_cache_that_is_copied() -> None:
    many = gemma("gemma4-dense", global_head_dim=512, num_attention_heads=12)
    check_context(many, CUDA, 65_535)
    check_context(WIDE, CUDA, 131_072)
    check_context(many, "onnxruntime", 131_072)
    with pytest.raises(BadInput, match="takes at most 65535 rows; use --context 65535 or less"):
        check_context(many, CUDA, 65_536)


def test_notes_ask_layers() -> None:
    """Of a student of Puzzle, some layers of which the fast kernel takes."""
    spec = spec_of(hidden_size=96, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    fewer = msgspec.structs.replace(spec.layers[0], num_attention_heads=3, num_key_value_heads=1)
    student = msgspec.structs.replace(spec, layers=(fewer, *spec.layers[1:]))
    assert cache_notes(spec, CUDA, "int8") == ()
    [note] = cache_notes(student, CUDA, "int8")
    assert "3 query heads per key head (expected 4, 8, 16 or 32)" in note
