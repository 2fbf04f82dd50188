"""Loading a graph on ONNX Runtime's CPU provider."""

from pathlib import Path
from typing import Any

from edgelm.bundle import GraphContract, GraphSegment
from edgelm.bundle.roles import HIDDEN
from edgelm.devices.detection.threads import physical_cores
from edgelm.errors import BadBundle
from edgelm.reasons import reason
from edgelm.runtime.engines.graph_check import check_ort_graph
from edgelm.runtime.engines.onnxruntime.onnxruntime_module import LazyOnnxRuntime
from edgelm.runtime.engines.onnxruntime.ort_version import check_version
from edgelm.runtime.process_memory.huge_pages import in_huge_pages

onnxruntime = LazyOnnxRuntime(
    "no engine installed: this bundle runs on ONNX Runtime; pip install 'edgelm[cpu]'"
)

_CPU = "CPUExecutionProvider"
# Long enough to bridge the sampling between two tokens, short enough to leave an idle device cool.
_SPIN_MICROSECONDS = "2000"


def load_graph(folder: Path, graph: GraphContract, threads: int | None) -> list[Any]:
    """Sessions of a graph's parts on the CPU, with this many threads; None: the physical cores.

    Raises:
        MissingPackage: onnxruntime is not installed, or too old for the graph.
        BadBundle: a graph that does not load, or that does not match the manifest.
    """
    check_version(onnxruntime.__version__, graph)
    with in_huge_pages():
        return [_load_part(folder, graph, part, threads) for part in graph.parts]


def _load_part(folder: Path, graph: GraphContract, part: GraphSegment, threads: int | None) -> Any:
    path = folder / part.file
    alone = not graph.segments and HIDDEN not in graph.inputs
    session = _load_file(path, threads, fused=graph.dialect == "ort", spins=alone)
    check_ort_graph(session, graph, part, path)
    return session


def _load_file(path: Path, threads: int | None, *, fused: bool, spins: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    if fused:
        # Only constant folding is left to do, and searching for more takes a tenth of the load.
        options.graph_optimization_level = level.ORT_ENABLE_BASIC
        # In the order of the file. By default nodes that only write a state come last, and what
        # they read is held until then.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    else:
        # Fused, a step takes a sixth of the time: without it every run dequantizes all weights.
        # Products stay in fp32, as the graph says; level 4 would round their inputs to int8.
        options.graph_optimization_level = level.ORT_ENABLE_ALL
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if not spins:  # the threads of the next segment, or of a draft head's, need the cores at once
        options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[_CPU])
    except Exception as error:
        raise BadBundle(f"ONNX Runtime cannot load {path}: {reason(error)}") from None
    if session.get_providers() != [_CPU]:
        raise BadBundle(f"{path} was placed on {session.get_providers()}, expected {[_CPU]}")
    return session
