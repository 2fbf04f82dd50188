"""Which precision every group gets, for explicit requests."""

import pytest

from edgelm.devices.kernels import KERNELS
from edgelm.export.request import ExportRequest
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Int4, Int8, WeightPrecision

CPU = KERNELS["onnxruntime"]
DOWN = "layers.0.mlp.down"


def given(columns: int, request: PlanRequest, engine: str = "onnxruntime") -> WeightPrecision:
    return ExportRequest(request).assignment({DOWN: columns}, KERNELS[engine])[DOWN]


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        (4096, 128),
        (576, 128),  # SmolLM2: 64 of padding are a ninth of its inputs
        (512 - 56, 128),  # 56 are less than an eighth of 456
        (448 - 56, 32),  # 120 and 56 would be more than an eighth of 392
        (192, 64),
        (96, 32),
        (8, 16),
    ],
)
def test_onnx_runtime_pads_no_more_than_an_eighth_unless_requested(columns: int, size: int) -> None:
    assert given(columns, PlanRequest("int4")) == Int4(size)
    requested = given(columns, PlanRequest("int4", group_size=128))
    assert requested == Int4(128), "a requested size stands"


def test_int8_keeps_to_it_too() -> None:
    assert given(576, PlanRequest("int8")) == Int8(32)
    assert given(100, PlanRequest("int8")) == Int8(16)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_where_nothing_is_padded_the_shape_is_seen_to_later(engine: str) -> None:
    assert given(100, PlanRequest("int4"), engine) == Int4(64)


def test_later_patterns_win() -> None:
    groups = {f"layers.{n}.mlp.{part}": 128 for n in range(2) for part in ("gate_up", "down")}
    request = ExportRequest(
        PlanRequest("int4"), exceptions={"layers.0.*": "int8", "*.down": "int4"}
    )
    assert request.assignment(groups, CPU) == {
        "layers.0.mlp.gate_up": Int8(),
        "layers.0.mlp.down": Int4(128),
        "layers.1.mlp.gate_up": Int4(128),
        "layers.1.mlp.down": Int4(128),
    }
