"""The graph builder: what it writes is what ONNX Runtime reads back."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dialects import ort
from tests.conftest import TinyFactory
from tests.export.graphs import build_session, cpu_engine

Array = npt.NDArray[Any]
FLOAT = ir.DataType.FLOAT
RNG = np.random.default_rng(0)


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return Graph(tmp_path, opsets={"": 24})


def run(folder: Path, **inputs: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(None, inputs)
    return results


def test_weights_on_disk_are_read_back(graph: Graph, tmp_path: Path) -> None:
    x = graph.input("x", FLOAT, (1, 3))
    weight = RNG.standard_normal((3, 5)).astype(np.float32)
    # Not contiguous, and narrower: stored as it reads.
    turned = RNG.standard_normal((7, 5)).astype(np.float16).T
    y = graph.op("MatMul", x, graph.weight("w", weight))
    wide = graph.op("Cast", graph.weight("t", turned), to=FLOAT.value)
    graph.output(graph.op("MatMul", y, wide), "y", FLOAT, (1, 7))
    graph.save()
    value = np.ones((1, 3), dtype=np.float32)
    expected = value @ weight @ turned.astype(np.float32)
    np.testing.assert_allclose(run(tmp_path, x=value)[0], expected, rtol=1e-5)


def test_weights_lie_on_cache_lines(graph: Graph, tmp_path: Path) -> None:
    sizes = [3, 64, 1, 100]
    values = [graph.weight(f"w{i}", np.full(n, i, np.uint8)) for i, n in enumerate(sizes)]
    graph.close()
    data = (tmp_path / "model.onnx.data").read_bytes()
    for index, (value, size) in enumerate(zip(values, sizes, strict=True)):
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None
        assert tensor.offset % 64 == 0
        assert data[tensor.offset : tensor.offset + size] == bytes([index]) * size
    assert graph.weight_bytes == sum(sizes)


def test_a_view_costs_no_bytes(graph: Graph, tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    weight = graph.weight("table", table)
    rows = graph.view("rows", weight, (4, 3))
    x = graph.input("x", ir.DataType.INT64, (1,))
    graph.output(graph.op("Gather", rows, x, axis=0), "row", FLOAT, (1, 3))
    graph.output(graph.op("Gather", weight, x, axis=0), "block", FLOAT, (1, 2, 3))
    graph.save()
    assert (tmp_path / "model.onnx.data").stat().st_size == table.nbytes == graph.weight_bytes
    row, block = run(tmp_path, x=np.array([1]))
    np.testing.assert_array_equal(row, [[3, 4, 5]])
    np.testing.assert_array_equal(block, table[1:])


def test_one_constant_per_name(graph: Graph) -> None:
    one = graph.constant("one", np.ones(1, dtype=np.float32))
    assert graph.constant("one", np.zeros(1, dtype=np.float32)) is one


def test_two_weights_of_one_name_are_our_mistake(graph: Graph) -> None:
    graph.weight("w", np.zeros(1, dtype=np.float32))
    with pytest.raises(AssertionError, match="two initializers named w"):
        graph.weight("w", np.ones(1, dtype=np.float32))


def test_several_outputs_and_absent_inputs(graph: Graph, tmp_path: Path) -> None:
    x = graph.input("x", FLOAT, (4,))
    top = graph.constant("top", np.array(2, dtype=np.float32))
    left, right = graph.op("Split", graph.op("Clip", x, None, top), outputs=2, num_outputs=2)
    graph.output(left, "left", FLOAT, (2,))
    graph.output(right, "right", FLOAT, (2,))
    graph.save()
    left_value, right_value = run(tmp_path, x=np.array([-9, 1, 2, 3], dtype=np.float32))
    assert left_value.tolist() == [-9, 1]
    assert right_value.tolist() == [2, 2]


@pytest.mark.parametrize(("count", "factor"), [(1, 10.0), (3, 2.0)], ids=["else", "then"])
@pytest.mark.parametrize("outputs", [1, 2], ids="{}-outputs".format)
def test_branch_runs_one_side(
    graph: Graph, tmp_path: Path, count: int, factor: float, outputs: int
) -> None:
    x = graph.input("x", FLOAT, ("N",))
    one = graph.constant("one", np.array([1], dtype=np.int64))
    several = graph.op("Greater", graph.op("Shape", x), one)
    ten = graph.constant("ten", np.array(10, dtype=np.float32))

    def then() -> tuple[ir.Value, ...]:
        return tuple(graph.op("Add", x, x) for _ in range(outputs))

    def otherwise() -> tuple[ir.Value, ...]:
        return tuple(graph.op("Mul", x, ten) for _ in range(outputs))

    for number, value in enumerate(graph.branch(several, then, otherwise, name="b")):
        graph.output(value, f"y{number}", FLOAT, ("N",))
    graph.save()
    values = np.arange(1, count + 1, dtype=np.float32)
    got = run(tmp_path, x=values)
    assert len(got) == outputs
    for result in got:
        np.testing.assert_array_equal(result, values * factor)


def test_every_value_has_a_name_of_its_own(graph: Graph, tmp_path: Path) -> None:
    x = graph.input("x", FLOAT, (1,))
    for _ in range(3):
        x = graph.op("Add", x, x)
    graph.output(x, "y", FLOAT, (1,))
    graph.save()
    assert run(tmp_path, x=np.ones(1, dtype=np.float32))[0].tolist() == [8.0]


def test_a_weight_that_is_not_packed(graph: Graph, tmp_path: Path) -> None:
    """ONNX Runtime copies constants into packed form; what a run may replace is not constant."""
    x = graph.input("x", FLOAT, ("B", 3))
    matrix = RNG.normal(size=(3, 4)).astype(np.float32)
    weight = graph.weight("w", matrix)
    for _ in range(2):
        graph.keep_unpacked(weight)
    graph.output(graph.op("MatMul", x, weight), "y", FLOAT, ("B", 4))
    graph.save()
    rows = RNG.normal(size=(2, 3)).astype(np.float32)
    [y] = run(tmp_path, x=rows)
    np.testing.assert_allclose(y, rows @ matrix, rtol=1e-6)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [one.name for one in session.get_overridable_initializers()] == ["w"]
    assert [one.name for one in session.get_inputs()] == ["x"]


@pytest.mark.parametrize(("name", "head"), [("llama", "embedding"), ("llama-untied", "lm_head")])
def test_a_large_unquantized_head_is_not_packed(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: str
) -> None:
    with build_session(tiny(name).checkpoint, tmp_path / "small") as session:
        [loaded] = cpu_engine(session)._sessions
        assert not loaded.get_overridable_initializers()
    monkeypatch.setattr(ort, "_MAX_PACKED_HEAD_BYTES", 0)
    with build_session(tiny(name).checkpoint, tmp_path) as session:
        [loaded] = cpu_engine(session)._sessions
        unpacked = [one.name for one in loaded.get_overridable_initializers()]
    assert unpacked == [f"{head}.weight"]
