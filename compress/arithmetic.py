"""Which arithmetic type this machine multiplies faster: bf16 or fp32.

A processor without bf16 units emulates the type: on an AVX2 CPU a linear layer in bf16 is 7 times
slower than in fp32 forwards, and 47 times forwards and backwards. So the layers are measured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from edgelm.spec.decoder import DecoderSpec

Arithmetic = Literal["bf16", "fp32"]
TORCH_TYPES: dict[Arithmetic, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}

_ROWS = 64
_MOST_INPUTS, _MOST_OUTPUTS = 1024, 4096  # enough to leave the caches' regime, a few ms each
_ROUNDS = 9  # the best one counts: other work on the machine disturbs most of them
_SPEED_ROWS = 512  # a common number of tokens in a micro-batch


@dataclass(frozen=True, slots=True)
class MeasuredArithmetic:
    """The choice, and time in bf16 relative to fp32: below 1 where bf16 is faster.

    forward and training are None where nothing had to be measured; training is forwards and
    backwards.
    """

    chosen: Arithmetic
    forward: float | None = None
    training: float | None = None

    def __str__(self) -> str:
        if self.forward is None:
            return f"{self.chosen} arithmetic"
        text = f"{self.chosen} arithmetic: a linear layer in bf16 takes {self.forward:.2f} times"
        if self.training is not None:
            text += f" (forwards) and {self.training:.2f} times (forwards and backwards)"
        return f"{text} the time of fp32 on this machine"


def measure_arithmetic(
    device: torch.device, hidden_size: int, intermediate_size: int
) -> MeasuredArithmetic:
    """The faster type for layers [hidden_size -> intermediate_size]; takes a tenth of a second.

    bf16 is chosen on a CPU if a linear layer is no slower in it, both forwards and with gradients;
    on an NVIDIA GPU if it has bf16 units. Other accelerators compute in fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return MeasuredArithmetic("bf16" if native else "fp32")
    if device.type != "cpu":
        return MeasuredArithmetic("fp32")
    sizes = min(hidden_size, _MOST_INPUTS), min(intermediate_size, _MOST_OUTPUTS)
    with _one_thread():
        forward = _ratio(sizes, _forward)
        if forward > 1:
            return MeasuredArithmetic("fp32", forward)
        training = _ratio(sizes, _training)
    return MeasuredArithmetic("fp32" if training > 1 else "bf16", forward, training)


def measured_speed(
    device: torch.device, dtype: torch.dtype, hidden_size: int, intermediate_size: int
) -> float:
    """Operations per second of a linear layer in training, for estimates of time.

    A whole step also does work that is not a matrix product, and may take up to twice as long.
    """
    inputs, outputs = min(hidden_size, _MOST_INPUTS), min(intermediate_size, _MOST_OUTPUTS)
    layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype, device=device)
    rows = torch.ones(_SPEED_ROWS, inputs, dtype=dtype, device=device, requires_grad=True)
    seconds = []
    for _ in range(1 + _ROUNDS):
        begun = time.perf_counter()
        _training(layer, rows)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 6 * _SPEED_ROWS * inputs * outputs / min(seconds[1:])


def faster_type(spec: DecoderSpec, device: torch.device) -> torch.dtype:
    """The type of `measure_arithmetic` for a decoder's layers."""
    found = measure_arithmetic(device, spec.hidden_size, spec.intermediate_size)
    return TORCH_TYPES[found.chosen]


def total_type(device: torch.device) -> torch.dtype:
    """The type in which losses are summed: fp64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _ratio(sizes: tuple[int, int], run: "Callable[[torch.nn.Linear, torch.Tensor], None]") -> float:
    """Best time in bf16 over best time in fp32, measured in turns."""
    pairs = []
    for dtype in (torch.bfloat16, torch.float32):
        layer = torch.nn.Linear(*sizes, bias=False, dtype=dtype)
        pairs.append((layer, torch.ones(_ROWS, sizes[0], dtype=dtype, requires_grad=True)))
    times: list[list[float]] = [[], []]
    for _ in range(1 + _ROUNDS):  # the first one prepares the library's kernels
        for seconds, pair in zip(times, pairs, strict=True):
            begun = time.perf_counter()
            run(*pair)
            seconds.append(time.perf_counter() - begun)
    bf16, fp32 = (min(seconds[1:]) for seconds in times)
    return bf16 / fp32


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within the context, products run on one thread.

    Several wait for each other. If other programs keep one of them from running, a product of half
    a millisecond takes fifty, in one type as in the other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _forward(layer: torch.nn.Linear, inputs: torch.Tensor) -> None:
    with torch.no_grad():
        layer(inputs)


def _training(layer: torch.nn.Linear, inputs: torch.Tensor) -> None:
    layer(inputs).sum().backward()
