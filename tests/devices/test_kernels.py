"""Group sizes by engine; what an 8-bit cache costs with ONNX Runtime on CUDA, said beforehand."""

import re

import msgspec
import pytest

from edgelm.devices.kernels import KERNELS, check_shape, kernels_of
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.decoder import DecoderSpec, LayerSpec, Rope
from tests.checkpoints.models import TINY, tiny_config
from tests.conftest import TinyFactory
from tests.core.spec.test_decoder import spec_of

CUDA = "onnxruntime-cuda"


def test_hybrids_are_refused_where_sessions_hold_rows_only(tiny: TinyFactory) -> None:
    for name in ("lfm2", "qwen3.5"):
        spec = tiny(name).checkpoint.spec
        with pytest.raises(BadInput, match=r"onnxruntime-cuda cannot run this .* tensorrt-rtx can"):
            check_shape(spec, "onnxruntime-cuda")
        for engine in ("onnxruntime", "tensorrt", "tensorrt-10.3", "tensorrt-rtx"):
            check_shape(msgspec.structs.replace(spec, head_dim=64), engine)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_refusal_names_engines_that_can(name: str) -> None:
    """Whatever the reason is, and only those; in one sentence."""
    spec = DecoderSpec.from_hf(tiny_config(name).to_dict())
    for shape in (spec, msgspec.structs.replace(spec, has_head=False)):
        refused = {}
        for engine in KERNELS:
            try:
                check_shape(shape, engine)
            except BadInput as error:
                refused[engine] = str(error)
        for engine, message in refused.items():
            head, _, others = message.partition("; ")
            assert head.startswith(f"{engine} cannot run this {spec.family}: ")
            named = set(re.findall(r"[a-z-]+", others)) & KERNELS.keys()
            assert named == KERNELS.keys() - refused.keys()


def test_int4_without_a_group_size_is_in_the_engines() -> None:
    sizes = {name: kernels.precision("int4") for name, kernels in KERNELS.items()}
    assert sizes.pop("onnxruntime") == Int4(128)
    assert set(sizes.values()) == {Int4(64)}
    asked = KERNELS["onnxruntime"].precision("int4", group_size=32, symmetric=True)
    assert asked == Int4(32, symmetric=True)
    assert KERNELS["onnxruntime"].precision("int8") == Int8()


def test_a_version_in_an_engines_name_has_its_kernels() -> None:
    assert kernels_of("tensorrt-10.3") == kernels_of("tensorrt") == KERNELS["tensorrt"]
    assert kernels_of("tensorrt-rtx") == KERNELS["tensorrt-rtx"]


def test_a_plan_counts_what_fills_rows_up() -> None:
    # 576 inputs are five groups of 128: 5 x (64 + 2) + 3 bytes; 1,536 are twelve.
    spec = spec_of(hidden_size=576, intermediate_size=1536, head_dim=144, num_key_value_heads=4)
    rows = 4 * 576 + 2 * 1536  # of q, k, v, o, gate, up
    layer = rows * (5 * 66 + 3) + 576 * (12 * 66 + 6)
    table = spec.vocab_size * (9 * 34 + 5)  # in groups of 64: 9 x (32 + 2) + 5
    planned = plan(spec, load_profile("cpu"), PlanRequest("int4"))
    assert planned.weight_bytes == 2 * layer + 2 * table + 4 * spec.vector_parameters


@pytest.mark.parametrize(
    ("target", "cache"),
    [("laptop-rtx-4060", "fp16"), ("jetson-orin", "fp16"), ("cpu", "int8")],
)
def test_only_a_cpu_rounds_the_cache_unasked(target: str, cache: str) -> None:
    engine = None if target == "cpu" else CUDA
    assert (
        plan(spec_of(head_dim=16), load_profile(target), PlanRequest("int4", engine=engine)).kv
        == cache
    )


@pytest.mark.parametrize(
    ("target", "caches"),
    [
        ("laptop-rtx-4060", ("fp16", "bf16", "int8", "fp8")),
        ("rtx-3060-laptop", ("fp16", "bf16", "int8")),
        ("jetson-orin", ("fp16", "int8")),
    ],
)
def test_caches_of_8_bits_by_generation(target: str, caches: tuple[str, ...]) -> None:
    assert load_profile(target).engine(CUDA).kv == caches


@pytest.mark.parametrize(
    ("head", "rotated", "fits"),
    [
        (16, 1.0, True),
        (80, 1.0, True),
        (8, 1.0, False),
        (24, 1.0, False),
        (100, 1.0, False),
        (32, 0.5, True),
        (24, 16 / 24, True),
        # Channels that are not rotated fill the kernel's tables, where there are enough of them.
        (16, 0.5, True),
        (80, 0.25, True),
        (96, 0.25, True),
        (24, 20 / 24, False),
        (20, 16 / 20, False),
    ],
)
@pytest.mark.parametrize("engine", ["onnxruntime", CUDA])
def test_heads_that_onnxruntimes_attention_refuses(
    head: int, rotated: float, fits: bool, engine: str
) -> None:
    spec = spec_of(head_dim=head)
    rope = Rope(10_000.0, round(head * rotated))
    spec = msgspec.structs.replace(spec, layers=(LayerSpec(rope),) * 2)
    check_shape(spec, "tensorrt-rtx")
    if fits:
        check_shape(spec, engine)
        return
    with pytest.raises(BadInput, match="attention kernel does not support"):
        check_shape(spec, engine)


def test_a_plan_refuses_what_a_kernel_would() -> None:
    with pytest.raises(BadInput, match=r"head_dim of 24 \(expected a multiple of 16\)"):
        plan(spec_of(head_dim=24), load_profile("cpu"), PlanRequest("int8"))
    assert plan(spec_of(head_dim=24), load_profile("laptop-rtx-4060"), PlanRequest("int8")).fits
