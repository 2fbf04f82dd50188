"""What products of several rows cost in ONNX Runtime's kernels for quantized weights.

    python -m bench.studies.sequences.product_rows [--formats 4:128,8:32] [--rows 1,2,4,8]
        [--threads 1] [--shapes 960x576,3072x576] [--copies 30]

A format is bits:group, followed by `z` with zero points. The default shapes are those of
SmolLM2-135M; each is multiplied with `copies` different random matrices, as in the layers of a
model, since a matrix that stays in a processor's cache would be multiplied faster. Milliseconds for
all copies of all shapes; of each product the 12th percentile of its runs counts.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

_SHAPES = "960x576,576x576,3072x576,576x1536"
_ROUNDS, _WARM_UP = 16, 2
Shape = tuple[int, int]  # outputs, inputs
Format = tuple[int, int, bool]  # bits, group size, whether it has zero points


def graph(shapes: list[Shape], form: Format, copies: int) -> bytes:
    """A model with a product of random weights for each copy of each shape."""
    bits, group, zero_points = form
    random = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    for number in range(copies):
        for rows, columns in shapes:
            name, groups = f"{rows}x{columns}.{number}", -(-columns // group)
            levels = random.integers(0, 256, (rows, groups, group * bits // 8), dtype=np.uint8)
            scales = random.random(rows * groups, dtype=np.float32)
            given: dict[str, npt.NDArray[Any]] = {"levels": levels, "scales": scales}
            if zero_points:
                size = rows * -(-groups * bits // 8)
                given["zeros"] = random.integers(0, 256, size, dtype=np.uint8)
            weights += [numpy_helper.from_array(one, f"{name}.{key}") for key, one in given.items()]
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    [f"x{columns}", *(f"{name}.{key}" for key in given)],
                    [name],
                    name=name,
                    domain="com.microsoft",
                    N=rows,
                    K=columns,
                    bits=bits,
                    block_size=group,
                    accuracy_level=4,
                )
            )
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", rows]))
    inputs = [
        helper.make_tensor_value_info(f"x{columns}", TensorProto.FLOAT, ["rows", columns])
        for columns in sorted({columns for _, columns in shapes})
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def measure(
    shapes: list[Shape], form: Format, rows: list[int], *, threads: int, copies: int
) -> dict[int, float]:
    """Milliseconds of all products by the number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            graph(shapes, form, copies), options, providers=["CPUExecutionProvider"]
        )
        bound = {count: _bound(session, count) for count in rows}
        runs = []
        for number in range(_WARM_UP + _ROUNDS):
            for count in rows if number % 2 else reversed(rows):
                session.run_with_iobinding(bound[count])
                runs.append(count)
        profile = json.loads(Path(session.end_profiling()).read_text())
    return _sums(profile, runs, len(shapes) * copies)


def _bound(session: Any, count: int) -> Any:
    """Random inputs of `count` rows, and memory for the outputs, which a run would allocate."""
    binding = session.io_binding()
    random = np.random.default_rng(1)
    for one in session.get_inputs():
        array = random.standard_normal((count, one.shape[1]), dtype=np.float32)
        binding.bind_ortvalue_input(one.name, ort.OrtValue.ortvalue_from_numpy(array))
    for one in session.get_outputs():
        array = np.zeros((count, one.shape[1]), dtype=np.float32)
        binding.bind_ortvalue_output(one.name, ort.OrtValue.ortvalue_from_numpy(array))
    return binding


def _sums(profile: list[dict[str, Any]], runs: list[int], products: int) -> dict[int, float]:
    events = [event for event in profile if event["name"].endswith("_kernel_time")]
    events.sort(key=lambda event: int(event["ts"]))
    times: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, event in enumerate(events):
        run = number // products
        if run >= _WARM_UP * len(set(runs)):
            times[runs[run], event["name"]].append(event["dur"] / 1e3)
    sums = dict.fromkeys(sorted(set(runs)), 0.0)
    for (count, _), each in times.items():
        sums[count] += sorted(each)[len(each) // 8]
    return sums


def _format(text: str) -> Format:
    bits, group = text.rstrip("z").split(":")
    return int(bits), int(group), text.endswith("z")


def _shape(text: str) -> Shape:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="4:32z,4:64z,4:128z,4:128,8:32,8:64,8:128")
    parser.add_argument("--rows", default="1,2,3,4,5,6,7,8,12,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default=_SHAPES, help="outputs x inputs")
    parser.add_argument("--copies", type=int, default=30, help="matrices of each shape")
    given = parser.parse_args()
    rows = [int(part) for part in given.rows.split(",")]
    shapes = [_shape(part) for part in given.shapes.split(",")]
    print("| format |", " | ".join(map(str, rows)), "|\n|---|" + "---:|" * len(rows))
    for text in given.formats.split(","):
        found = measure(shapes, _format(text), rows, threads=given.threads, copies=given.copies)
        cells = (f"{found[count]:.2f} ({found[count] / found[rows[0]]:.2f})" for count in rows)
        print(f"| {text} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
