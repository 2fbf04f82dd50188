"""Whether the installed ONNX Runtime is new enough for a graph."""

from edgelm.bundle import GraphContract
from edgelm.errors import MissingPackage

_OPSET_OF_1_23 = 23  # the newest of ONNX Runtime 1.23, the last one for Python 3.10
_WINDOW_CACHE = (1, 30)  # the oldest whose `sliding_window_cache` was run
_RECURRENT_OPS = (1, 32)  # the oldest that LinearAttention was run with


def check_version(version: str, graph: GraphContract) -> None:
    """Check ONNX Runtime's version, because its own error does not say which one is needed.

    Raises:
        MissingPackage: it does not know the graph's opset or operators.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    if graph.dialect == "ort" and graph.cache.states and (major, minor) < _RECURRENT_OPS:
        raise MissingPackage(
            "the bundle's graph has recurrent layers, which need ONNX Runtime 1.32, but "
            f"{version} is installed; upgrade it (Python 3.11 or newer)"
        )
    rows = [layer.rows for layer in graph.cache.layers if layer.rows is not None]
    if rows and (major, minor) < _WINDOW_CACHE:
        # Layers keep all tokens of a context this short: less than five times their rows.
        raise MissingPackage(
            "the bundle's windowed layers keep only their window, which needs ONNX Runtime 1.30, "
            f"but {version} is installed; upgrade it (Python 3.11 or newer), or export the bundle "
            f"with --kv fp32 --context {4 * min(rows)}"
        )
    opset = graph.opsets.get("ai.onnx", 0)
    if opset > _OPSET_OF_1_23 and (major, minor) <= (1, 23):
        raise MissingPackage(
            f"the bundle's graph is of opset {opset}, which needs ONNX Runtime 1.32, but {version} "
            "is installed; upgrade it (Python 3.11 or newer), or export the bundle with --kv fp32"
        )
