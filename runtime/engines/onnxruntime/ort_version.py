"""Whether the installed ONNX Runtime is new enough for a graph."""

from edgelm.bundle import GraphContract
from edgelm.errors import MissingPackage
from edgelm.quantize.precision import EIGHT_BIT_KV

_OPSET_OF_1_23 = 23  # the newest of ONNX Runtime 1.23, the last one for Python 3.10
# The oldest that ran each kind of graph, of the releases since 1.23.
_EIGHT_BIT_CACHE = (1, 27)  # 1.25 and 1.26 load such a graph, and its attention fails
_WINDOW_CACHE = (1, 30)
_MATRIX_STATES = (1, 30)


def check_version(version: str, graph: GraphContract) -> None:
    """Check ONNX Runtime's version, because its own error does not say which one is needed.

    Raises:
        MissingPackage: it does not know the graph's opset or operators.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    fused, found = graph.dialect == "ort", (major, minor)
    matrices = any(state.kind == "matrix" for state in graph.cache.states)
    if fused and matrices and found < _MATRIX_STATES:
        raise MissingPackage(
            "the bundle's graph has recurrent layers, which need ONNX Runtime 1.30, but "
            f"{version} is installed; upgrade it (Python 3.11 or newer)"
        )
    rows = [layer.rows for layer in graph.cache.layers if layer.rows is not None]
    if rows and found < _WINDOW_CACHE:
        # Layers keep all tokens of a context this short: less than five times their rows.
        raise MissingPackage(
            "the bundle's windowed layers keep only their window, which needs ONNX Runtime 1.30, "
            f"but {version} is installed; upgrade it (Python 3.11 or newer), or export the bundle "
            f"with --kv fp32 --context {4 * min(rows)}"
        )
    if fused and graph.cache.dtype in EIGHT_BIT_KV and found < _EIGHT_BIT_CACHE:
        raise MissingPackage(
            f"the bundle's cache is {graph.cache.dtype}, which needs ONNX Runtime 1.27, but "
            f"{version} is installed; upgrade it (Python 3.11 or newer), or export the bundle with "
            "--kv fp32"
        )
    opset = graph.opsets.get("ai.onnx", 0)
    if opset > _OPSET_OF_1_23 and found <= (1, 23):
        raise MissingPackage(
            f"the bundle's graph is of opset {opset}, which needs ONNX Runtime 1.27, but {version} "
            "is installed; upgrade it (Python 3.11 or newer), or export the bundle with --kv fp32"
        )
