"""Measure this machine and write a profile for the planner.

Stacks of decoder layers of several sizes are timed in every precision and cache type of the
runtime. Least squares on relative errors gives the cost per byte, per operation and per layer.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.devices.calibration.found import Found
from edgelm.devices.calibration.stack import HEAD_DIM, StackShape, build_stack
from edgelm.devices.calibration.timing import TimedStack, read_gb_s
from edgelm.devices.calibration.write import profile_text
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.memory import available_bytes
from edgelm.devices.detection.threads import physical_cores
from edgelm.devices.kernels import KERNELS
from edgelm.devices.profile import ENVIRONMENT, read_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.staging import check_output_folder, replace_file
from edgelm.quantize.precision import KV_BYTES, KvType

# The same bytes in many narrow layers and in few wide ones separate the cost of a layer from that
# of a byte. They exceed every laptop's cache, as a model does.
_WIDTHS = ((512, 1536), (768, 2048), (1536, 4096))
_STACK_BYTES = 200_000_000
_MIN_LAYERS = 3
_KERNELS = KERNELS["onnxruntime"]
_PASSES = 2
_CHUNK = 128  # tokens per pass of a prompt, as in the runtime
_SHALLOW, _DEEP = 0, 4096
MEASURED = ("fp32", "int8", "int4")
_CACHES: tuple[KvType, ...] = ("fp32", "int8")
# Embedding, final norm, binding and sampling around the layers of one token.
_AROUND_US = 100.0
_NEEDED_BYTES = 3_000_000_000
NAME = "cpu"


class Sample(NamedTuple):
    """One timed stack."""

    shape: StackShape
    precision: str
    kv: KvType
    step_ms: float  # one token with an empty cache
    deep_ms: float  # one token after 4,096
    chunk_ms: float | None  # 128 tokens with an empty cache
    deep_chunk_ms: float | None

    @property
    def weight_bytes(self) -> float:
        bits = _KERNELS.precision(self.precision).bits_per_weight
        return self.shape.layers * self.shape.parameters_per_layer * bits / 8

    @property
    def cache_bytes(self) -> float:
        width = 2 * self.shape.kv_heads * HEAD_DIM * KV_BYTES[self.kv]
        return self.shape.layers * width * _DEEP


def calibrate(folder: Path | None, *, threads: int | None, progress: Callable[[str], None]) -> Path:
    """Write `cpu.toml` for this machine; return its path.

    Raises:
        BadInput: no folder to write to, or one that cannot be written to.
        DoesNotFit: less than 3 GB of memory are free.
        MissingPackage: onnx or ONNX Runtime is not installed.
    """
    folder = folder or _first_folder()
    check_output_folder(folder, "--output")
    if available_bytes() < _NEEDED_BYTES:
        raise DoesNotFit(
            f"calibration needs {_NEEDED_BYTES / 1e9:.0f} GB of free memory, "
            f"but only {available_bytes() / 1e9:.1f} GB are; close other programs and retry"
        )
    threads = threads or physical_cores()
    progress(f"calibrating with {threads} threads; leave the machine idle for two minutes")
    rate = read_gb_s(threads)
    progress(f"memory bandwidth {rate:.1f} GB/s")
    found = solve(rate, measure(threads, progress))
    path = folder / f"{NAME}.toml"
    machine = detect()
    text = profile_text(found, machine, threads=threads, when=datetime.now(timezone.utc).date())
    replace_file(path, text.encode())
    read_profile(path)  # checks that it can be read
    if str(folder.resolve()) not in map(
        _resolved, os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    ):
        progress(f"to use it: export {ENVIRONMENT}={folder.resolve()}")
    return path


def _first_folder() -> Path:
    folders = [part for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    if not folders:
        raise BadInput(f"no folder for the profile; give -o DIR, or set {ENVIRONMENT} to a folder")
    return Path(folders[0])


def _resolved(folder: str) -> str:
    return str(Path(folder).resolve()) if folder else ""


def measure(threads: int, progress: Callable[[str], None]) -> list[Sample]:
    """Time every stack twice in every precision and cache type, and take the mean.

    About a minute lies between the two passes, so that a short load on the machine affects only
    one of them.
    """
    stacks = [
        (shape, precision, kv)
        for precision in MEASURED
        for shape in _shapes(precision)
        for kv in _CACHES
    ]
    found: dict[tuple[StackShape, str, KvType], Sample] = {}
    for number in range(_PASSES * len(stacks)):
        key = stacks[number % len(stacks)]
        sample = _sample(*key, threads)
        found[key] = _mean(sample, found[key]) if key in found else sample
        shape, precision, kv = key
        progress(
            f"{number + 1}/{_PASSES * len(stacks)} {precision} weights, {kv} cache, "
            f"{shape.layers} layers of {shape.hidden}: {sample.step_ms:.2f} ms per token, "
            f"{sample.deep_ms:.2f} ms after {_DEEP:,} tokens"
        )
    return list(found.values())


def _mean(one: Sample, other: Sample) -> Sample:
    def between(first: float | None, second: float | None) -> float | None:
        return None if first is None or second is None else (first * second) ** 0.5

    return one._replace(
        step_ms=(one.step_ms * other.step_ms) ** 0.5,
        deep_ms=(one.deep_ms * other.deep_ms) ** 0.5,
        chunk_ms=between(one.chunk_ms, other.chunk_ms),
        deep_chunk_ms=between(one.deep_chunk_ms, other.deep_chunk_ms),
    )


def _shapes(precision: str) -> list[StackShape]:
    found = []
    for hidden, ffn in _WIDTHS:
        layer = StackShape.of_widths(1, hidden, ffn).parameters_per_layer
        layers = _STACK_BYTES * 8 / (_KERNELS.precision(precision).bits_per_weight * layer)
        found.append(StackShape.of_widths(max(_MIN_LAYERS, round(layers)), hidden, ffn))
    return found


def _sample(shape: StackShape, precision: str, kv: KvType, threads: int) -> Sample:
    stack = TimedStack(build_stack(shape, precision, kv), shape, kv, threads)
    steps = [stack.milliseconds(1, past) for past in (_SHALLOW, _DEEP)]
    chunks: list[float | None] = [None, None]
    if kv == "fp32":  # prompts use fp32 attention with every cache type
        chunks = [stack.milliseconds(_CHUNK, past) for past in (_SHALLOW, _DEEP)]
    return Sample(shape, precision, kv, steps[0], steps[1], chunks[0], chunks[1])


def solve(rate: float, samples: Sequence[Sample]) -> Found:
    """Costs per byte, operation and layer from timed stacks."""
    precisions = list(dict.fromkeys(sample.precision for sample in samples))
    step = _least_squares(
        [
            [sample.weight_bytes * (sample.precision == name) for name in precisions]
            + [float(sample.shape.layers)]
            for sample in samples
        ],
        [sample.step_ms for sample in samples],
    )
    prompts = [sample for sample in samples if sample.chunk_ms is not None]
    chunk = _least_squares(
        [
            [_operations(sample) * (sample.precision == name) for name in precisions]
            + [float(sample.shape.layers)]
            for sample in prompts
        ],
        [sample.chunk_ms or 0.0 for sample in prompts],
    )
    attention = [
        ((sample.deep_chunk_ms or 0.0) - (sample.chunk_ms or 0.0)) / _attention_operations(sample)
        for sample in prompts
    ]
    return Found(
        read_gb_s=rate,
        weights_gb_s={
            name: 1e-6 / cost for name, cost in zip(precisions, step.costs, strict=False)
        },
        cache_gb_s={kv: _cache_gb_s([s for s in samples if s.kv == kv]) for kv in _CACHES},
        matrices_tflops={
            name: 1e-9 / cost for name, cost in zip(precisions, chunk.costs, strict=False)
        },
        attention_tflops=1e-9 / float(np.median(attention)),
        layer_us=1e3 * step.costs[-1],
        prompt_layer_us=1e3 * chunk.costs[-1],
        step_us=_AROUND_US,
        worst=max(step.worst, chunk.worst),
    )


def _operations(sample: Sample) -> float:
    return 2.0 * _CHUNK * sample.shape.layers * sample.shape.parameters_per_layer


def _attention_operations(sample: Sample) -> float:
    return 4.0 * _CHUNK * _DEEP * sample.shape.layers * sample.shape.heads * HEAD_DIM


def _cache_gb_s(samples: Sequence[Sample]) -> float:
    rates = [1e-6 * one.cache_bytes / (one.deep_ms - one.step_ms) for one in samples]
    return float(np.median(rates))


class _Solution(NamedTuple):
    costs: list[float]
    worst: float


def _least_squares(costs: list[list[float]], times: list[float]) -> _Solution:
    """Non-negative costs per unit that minimize the relative errors."""
    matrix = np.array(costs) / np.array(times)[:, None]
    ones = np.ones(len(times))
    scale = matrix.max(0)
    solution = _non_negative(matrix / scale, ones) / scale
    errors = matrix @ solution - 1
    return _Solution([max(float(cost), 1e-15) for cost in solution], float(np.abs(errors).max()))


def _non_negative(
    matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Least squares over the columns whose solution is positive."""
    columns = list(range(matrix.shape[1]))
    while True:
        solution = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
        if (solution >= 0).all():
            break
        columns = [one for one, value in zip(columns, solution, strict=True) if value >= 0]
    full = np.zeros(matrix.shape[1])
    full[columns] = solution
    return full
