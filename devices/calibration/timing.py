"""Time a stack with ONNX Runtime, and memory reads with numpy."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from edgelm.devices.calibration.stack import POSITIONS, StackShape
from edgelm.errors import MissingPackage
from edgelm.quantize.precision import KvType

_CPU = "CPUExecutionProvider"
_READ_BYTES = 1 << 30
_REPEATS = 7
_ENOUGH_S = 0.25  # per measurement, so that one interruption does not dominate it


def read_gb_s(threads: int) -> float:
    """Bandwidth of sequential reads far beyond any cache, the best of several, in GB/s."""
    part = np.ones(_READ_BYTES // 8 // threads, dtype=np.int64)
    parts = [part] + [part.copy() for _ in range(threads - 1)]
    with ThreadPoolExecutor(threads) as pool:

        def once() -> None:
            list(pool.map(np.bitwise_or.reduce, parts))

        once()
        seconds = min(_timed(once) for _ in range(_REPEATS))
    return threads * part.nbytes / seconds / 1e9


class TimedStack:
    """A stack in a session with the runtime's settings, its cache bound in place."""

    def __init__(
        self,
        model: bytes,
        shape: StackShape,
        kv: KvType,
        threads: int,
        *,
        positions: int = POSITIONS,
    ) -> None:
        self._shape = shape
        self._session = _session(model, threads)
        dtype = np.int8 if kv == "int8" else np.float32
        cache = (1, shape.kv_heads, positions, shape.head_dim)
        self._cache = [np.zeros(cache, dtype) for _ in range(2 * shape.layers * bool(shape.heads))]
        named = {one.name for one in self._session.get_inputs()}
        self._named = named  # what attention alone reads is not in every stack

    def milliseconds(
        self, tokens: int, past: int, *, least: int = _REPEATS, enough_s: float = _ENOUGH_S
    ) -> float:
        """Median time of a pass over `tokens` tokens after `past` earlier ones.

        Passes are repeated until they took `enough_s` seconds, and at least `least` times.
        """
        x = np.ones((1, tokens, self._shape.hidden), dtype=np.float32)
        y = np.empty_like(x)
        last = np.array([past + tokens - 1], dtype=np.int32)
        total = np.array(past + tokens, dtype=np.int32)
        prefill = np.array(tokens > 1)
        binding = self._session.io_binding()
        inputs = {"x": x, "last_position": last, "total_length": total, "is_prefill": prefill}
        for name, array in inputs.items():
            if name in self._named:
                _bind(binding.bind_input, name, array)
        _bind(binding.bind_output, "y", y)
        for number, array in enumerate(self._cache):
            place = f"{number // 2}.{'kv'[number % 2]}"
            _bind(binding.bind_input, f"past.{place}", array)
            _bind(binding.bind_output, f"present.{place}", array)

        def once() -> None:
            self._session.run_with_iobinding(binding)

        once()
        samples: list[float] = []
        while len(samples) < least or sum(samples) < enough_s:
            samples.append(_timed(once))
        return 1e3 * median(samples)


def _timed(once: Callable[[], Any]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def _session(model: bytes, threads: int) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackage(
            "calibration needs ONNX Runtime, which is not installed; pip install 'edgelm[cpu]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
    return onnxruntime.InferenceSession(model, options, providers=[_CPU])


def _bind(bind: Callable[..., None], name: str, array: Any) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
