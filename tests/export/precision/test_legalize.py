"""What each engine has kernels for."""

import pytest

from edgelm.devices.kernels import KERNELS
from edgelm.errors import UnknownName
from edgelm.export.precision.legalize import legalize
from edgelm.quantize.precision import W8A8, Fp8, Fp16, Int4, Int8, Nvfp4, WeightPrecision
from edgelm.spec.groups import EMBEDDING, HEAD

GROUP = "layers.0.attention.qkv"


def legal(
    precision: WeightPrecision,
    engine: str,
    columns: int,
    *,
    group: str = GROUP,
    group_size: int | None = None,
    symmetric: bool | None = None,
) -> WeightPrecision:
    return legalize(
        {group: precision},
        {group: columns},
        KERNELS[engine],
        group_size=group_size,
        symmetric=symmetric,
    )[group]


@pytest.mark.parametrize("precision", [Int4(group_size=16), Int8(symmetric=False), Fp16()])
def test_onnx_runtime_takes_any_shape(precision: WeightPrecision) -> None:
    assert legal(precision, "onnxruntime", 125) == precision


@pytest.mark.parametrize(
    ("engine", "columns", "size"),
    [
        ("tensorrt", 576, 64),  # SmolLM2: no multiple of 128
        ("tensorrt", 4096, 64),
        ("tensorrt", 640, 64),
        ("tensorrt-rtx", 96, 32),
        ("tensorrt-rtx", 576, 64),
    ],
)
def test_the_nearest_group_size_that_divides(engine: str, columns: int, size: int) -> None:
    assert legal(Int4(), engine, columns) == Int4(group_size=size, symmetric=True)


@pytest.mark.parametrize("group", [HEAD, EMBEDDING])
@pytest.mark.parametrize(
    ("columns", "requested", "given"),
    [(576, 128, 64), (576, 64, 64), (96, 256, 32), (1000, 128, 128)],
)
def test_onnx_runtime_gathers_whole_blocks_where_it_can(
    group: str, columns: int, requested: int, given: int
) -> None:
    assert legal(Int4(requested), "onnxruntime", columns, group=group) == Int4(given)


def test_int8_where_no_group_size_divides() -> None:
    assert legal(Int4(), "tensorrt", 96) == Int8(group_size=0)


def test_a_group_size_that_was_requested_must_divide() -> None:
    message = (
        r"layers\.0\.attention\.qkv has 576 inputs, which is not a multiple of the group size "
        r"128; use --group-size 64, or --layer 'layers\.0\.attention\.qkv=int8'"
    )
    with pytest.raises(UnknownName, match=message):
        legal(Int4(group_size=128), "tensorrt", 576, group_size=128)


def test_a_group_size_that_the_engine_lacks() -> None:
    with pytest.raises(UnknownName, match="TensorRT has no int4 in groups of 32; it has 64, 128"):
        legal(Int4(group_size=32), "tensorrt", 576, group_size=32)


def test_tensorrt_has_no_zero_points() -> None:
    with pytest.raises(UnknownName, match="TensorRT has no zero points; leave out --no-symmetric"):
        legal(Int4(), "tensorrt", 576, symmetric=False)


def test_int8_of_tensorrt_has_a_scale_a_channel() -> None:
    assert legal(Int8(), "tensorrt-rtx", 576) == Int8(group_size=0)
    with pytest.raises(UnknownName, match="per output channel only; leave out --group-size 32"):
        legal(Int8(), "tensorrt-rtx", 576, group_size=32)


@pytest.mark.parametrize("precision", [W8A8(), Fp8(), Nvfp4()])
def test_the_head_keeps_its_inputs(precision: WeightPrecision) -> None:
    assert legal(precision, "tensorrt", 576) == precision
    assert legal(precision, "tensorrt", 576, group="lm_head") == Int8(group_size=0)


@pytest.mark.parametrize("precision", [W8A8(), Fp8(), Nvfp4()])
def test_onnx_runtime_has_none_of_those(precision: WeightPrecision) -> None:
    with pytest.raises(UnknownName, match=r"ONNX Runtime has no .*; it has fp32, fp16, bf16, int8"):
        legal(precision, "onnxruntime-cuda", 576)


def test_nvfp4_needs_blocks_of_sixteen() -> None:
    with pytest.raises(
        UnknownName, match="has 24 inputs, which is not a multiple of 16 as nvfp4 needs"
    ):
        legal(Nvfp4(), "tensorrt-rtx", 24)
