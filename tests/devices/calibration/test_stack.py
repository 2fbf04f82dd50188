"""The stack is a graph that ONNX Runtime runs, with the sizes it says it has."""

import numpy as np
import onnx
import pytest

from edgelm.devices.calibration.calibrate import MEASURED
from edgelm.devices.calibration.stack import StackShape, build_stack
from edgelm.devices.calibration.timing import TimedStack, read_gb_s
from edgelm.quantize.precision import PRECISIONS, KvType

TINY = StackShape.of_widths(2, 192, 256)


def test_parameters_by_hand() -> None:
    # 3 query heads and 1 key head of 64: q, k, v, o; gate, up, down.
    assert TINY.parameters_per_layer == 192 * (192 + 64 + 64 + 192) + 3 * 192 * 256


@pytest.mark.parametrize("kv", ["fp32", "int8"])
@pytest.mark.parametrize("precision", MEASURED)
def test_runs(precision: str, kv: KvType) -> None:
    stack = TimedStack(build_stack(TINY, precision, kv), TINY, kv, threads=1)
    assert 0 < stack.milliseconds(1, 0) < 1e3
    assert 0 < stack.milliseconds(8, 100) < 1e3


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_holds_the_bytes_it_is_charged_for(precision: str) -> None:
    model = onnx.load_from_string(build_stack(TINY, precision, "int8"))
    stored = sum(
        np.prod(tensor.dims)
        * {onnx.TensorProto.UINT8: 1, onnx.TensorProto.FLOAT: 2}[tensor.data_type]
        for tensor in model.graph.initializer
        if tensor.name.startswith("layers.")
    )
    expected = 2 * TINY.parameters_per_layer * PRECISIONS[precision].bits_per_weight / 8
    # Scales are charged as 16 bits; rows of zero points end on whole bytes.
    assert stored == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_memory_is_read_at_a_plausible_rate() -> None:
    assert 0.5 < read_gb_s(1) < 2000
