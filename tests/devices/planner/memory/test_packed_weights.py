"""Weights in the memory of ONNX Runtime, by hand and measured."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes
from edgelm.devices.planner.memory.packed_weights import (
    packed_bits,
    packing_bytes,
    planned_packing_bytes,
)
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Fp32, Int4, Int8, WeightPrecision
from edgelm.spec.groups import HEAD, groups, matrix_shape
from tests.devices.checks.recorded import manifest

_ROWS, _COLUMNS, _MATRICES = 2048, 2048, 8
_SESSION = """
import sys
from pathlib import Path
import onnxruntime
from edgelm.runtime.engines.onnxruntime.host.load_graph import _load_file

def figure(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before, start = figure("RssAnon"), figure("VmRSS")
session = _load_file(Path(sys.argv[1]), 2, fused=True, spins=True)
print(figure("RssAnon") - before, figure("VmHWM") - start)
"""


@pytest.mark.parametrize(
    ("precision", "bits"),
    [(Int8(32), 11), (Int8(128), 8.75), (Int4(32), 7), (Int4(128), 4.75), (Fp32(), 32)],
)
def test_bits_in_memory(precision: WeightPrecision, bits: float) -> None:
    assert packed_bits(precision) == bits


def test_a_bundle_is_counted_by_its_matrices() -> None:
    spec = manifest().spec
    names = groups(spec)
    weights = sum(np.prod(matrix_shape(spec, name)) for name in names)
    whole = manifest(precision=dict.fromkeys(names, Int8(32)))
    assert packing_bytes(whole) == weights * (11 - 8.5) / 8
    head = np.prod(matrix_shape(spec, HEAD))
    assert packing_bytes(manifest(precision={HEAD: Int4(32, True)})) == head * (7 - 4.5) / 8
    # A plan without the matrices' names comes to the same.
    planned = planned_packing_bytes(
        spec, PlanRequest("int8"), "onnxruntime", linear_bits=8.5, head_bits=8.5
    )
    assert planned == pytest.approx(packing_bytes(whole), rel=0.01)


def test_a_mixture_is_planned_as_the_format_above_it() -> None:
    spec, request = manifest().spec, PlanRequest("auto")
    sizes = [
        planned_packing_bytes(spec, request, "onnxruntime", linear_bits=bits, head_bits=bits)
        for bits in (4.3, 6.5, 32)
    ]
    assert sizes[1] > sizes[0] > sizes[2] == 0


def test_a_draft_shares_tokenizer_runtime_and_workspace() -> None:
    whole = manifest()
    for context in (512, 2048, 8192):
        alone, added = loaded_bytes(whole, context), draft_bytes(whole, whole, context)
        cache = 32 * 2 * 3 * 64 * context
        assert added == 900_000_000 + 1_000_000 + 32 * 350_000 + cache
        assert added < alone
    # A draft with a chunk of its own that needs more than the model's.
    limits = msgspec.structs.replace(whole.limits, prefill_chunk=512)
    wide = msgspec.structs.replace(whole, limits=limits)
    assert draft_bytes(wide, whole, 2048) > draft_bytes(whole, whole, 2048)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", [Int8(32), Int8(128), Int4(32, True), Int4(128, True)])
def test_bits_in_memory_are_those_of_a_session(tmp_path: Path, precision: Int8 | Int4) -> None:
    path = tmp_path / "model.onnx"
    weights = _write_graph(path, precision)
    words = [sys.executable, "-c", _SESSION, str(path)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    held, peak = (int(number) for number in done.stdout.split())
    packed = weights * packed_bits(precision) / 8
    assert held == pytest.approx(packed, rel=0.05, abs=4e6)
    # Mapped one after the other: the file is never in memory as a whole beside the packed copy.
    assert peak < packed + 0.4 * weights * precision.bits_per_weight / 8 + 12e6


def _write_graph(path: Path, precision: Int8 | Int4) -> int:
    """Matrix products with weights in a file of their own; returns the number of weights."""
    import onnx
    from onnx import TensorProto, helper

    bits, size = (8 if isinstance(precision, Int8) else 4), precision.group_size
    blocks = _COLUMNS // size
    random = np.random.default_rng(0)
    nodes, tensors, outputs = [], [], []
    for index in range(_MATRICES):
        levels = random.integers(0, 256, (_ROWS, blocks, size * bits // 8), dtype=np.uint8)
        scales = np.full((_ROWS, blocks), 0.01, np.float16)
        tensors.append(onnx.numpy_helper.from_array(levels, f"levels.{index}"))
        tensors.append(onnx.numpy_helper.from_array(scales, f"scales.{index}"))
        cast = [f"scales.{index}"], [f"cast.{index}"]
        nodes.append(helper.make_node("Cast", *cast, to=TensorProto.FLOAT))
        inputs, output = ["x", f"levels.{index}", f"cast.{index}"], f"y.{index}"
        node = helper.make_node("MatMulNBits", inputs, [output], domain="com.microsoft")
        options = {"K": _COLUMNS, "N": _ROWS, "bits": bits, "block_size": size, "accuracy_level": 4}
        node.attribute.extend(helper.make_attribute(*one) for one in options.items())
        nodes.append(node)
        outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["T", _ROWS]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", _COLUMNS])
    graph = helper.make_graph(nodes, "products", [given], outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=1024)
    return _MATRICES * _ROWS * _COLUMNS
