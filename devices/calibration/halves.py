"""Time single halves of layers on this machine's ONNX Runtime: attention, MLPs, heads.

Each kind is a stack of copies of itself, as large as a model, so that weights are read from memory
as they are while a model decodes. Kinds are timed in turn, in several rounds, so that a short load
on the machine does not fall on one kind alone.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from edgelm.devices.calibration.stack import StackShape, build_stack
from edgelm.devices.calibration.timing import TimedStack
from edgelm.devices.detection.memory import available_bytes
from edgelm.devices.kernels import KERNELS
from edgelm.errors import DoesNotFit
from edgelm.quantize.precision import KV_BYTES, KvType

_STACK_BYTES = 128_000_000  # beyond the caches of processors of edge devices
TIMED_BYTES = 3_000_000_000
"""About the memory that a few kinds take, for estimates."""
_MOST_COPIES, _COPIES_OF_PROMPTS = 64, 8
_COPIES_IN_MEMORY = 3  # the graph while it is read, its weights, and their packed copy
_ROUNDS = 5
_ENOUGH_S = 0.05
_LEAST, _LEAST_OF_PROMPTS = 5, 1  # passes in a round


class HalfTimes(msgspec.Struct, frozen=True):
    """Times of one half of a layer, in milliseconds.

    decode: of one token. prompt: of all of a prompt's tokens. spread: the largest of the times of
    a token over the smallest; far above 1 on a machine that did other work.
    """

    decode: float
    prompt: float
    spread: float = 1.0


class Passes(msgspec.Struct, frozen=True):
    """What is timed: a token after `depth` others, and a prompt of `prompt` in chunks."""

    depth: int
    prompt: int
    chunk: int

    @property
    def chunks(self) -> list[int]:
        """Where full chunks of the prompt begin: the first one, and the last one if it differs."""
        last = max(0, self.prompt - self.width)
        return [0, last] if last else [0]

    @property
    def width(self) -> int:
        """Tokens of a chunk."""
        return min(self.chunk, self.prompt)

    @property
    def positions(self) -> int:
        """Tokens that a cache must hold."""
        return max(self.depth + 1, self.prompt)


def time_halves(
    shapes: Sequence[StackShape],
    precision: str,
    kv: KvType,
    passes: Passes,
    *,
    threads: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[HalfTimes]:
    """Times of halves of layers, in the order of the shapes.

    Args:
        shapes: each of one layer (`layers` is chosen here).
        precision: of the matrices: fp32, int8 or int4.
        kv: type of the cache.
        passes: depth and prompt.
        threads: of ONNX Runtime.
        progress: called with the rounds that are done, and of all.

    Raises:
        DoesNotFit: not enough memory is free.
        MissingPackage: onnx or ONNX Runtime is not installed.
    """
    kinds = [_Kind(one, precision, kv, passes) for one in shapes]
    needed = sum(one.bytes_needed for one in kinds)
    if needed > available_bytes():
        raise DoesNotFit(
            f"timing {len(shapes)} kinds of layers needs {needed / 1e9:.1f} GB of free memory, but "
            f"only {available_bytes() / 1e9:.1f} GB are; close other programs and retry"
        )
    for one in kinds:
        one.open(threads)
    rounds: list[list[HalfTimes]] = []
    for number in range(_ROUNDS):
        rounds.append([one.once() for one in kinds])
        progress(number + 1, _ROUNDS)
    return [_middle(of_kind) for of_kind in zip(*rounds, strict=True)]


def _middle(rounds: Sequence[HalfTimes]) -> HalfTimes:
    steps = [one.decode for one in rounds]
    return HalfTimes(median(steps), median(one.prompt for one in rounds), max(steps) / min(steps))


class _Kind:
    """One kind of half: a stack for single tokens, and a smaller one for prompts.

    Prompts multiply more than they read. In a bundle they attend in fp32 with every type of cache.
    """

    def __init__(self, shape: StackShape, precision: str, kv: KvType, passes: Passes) -> None:
        bits = KERNELS["onnxruntime"].precision(precision).bits_per_weight
        one = shape.parameters_per_layer * bits / 8
        copies = max(1, min(_MOST_COPIES, round(_STACK_BYTES / one)))
        self.precision, self.passes = precision, passes
        self.parts: list[tuple[StackShape, KvType]] = [(shape._replace(layers=copies), kv)]
        if not shape.outputs:  # a head runs for the last token of a prompt alone
            self.parts.append((shape._replace(layers=min(copies, _COPIES_OF_PROMPTS)), "fp32"))
        self.stacks: list[TimedStack] = []

    @property
    def bytes_needed(self) -> int:
        """Memory of its stacks."""
        bits = KERNELS["onnxruntime"].precision(self.precision).bits_per_weight
        total = 0.0
        for shape, kv in self.parts:
            weights = shape.parameters_per_layer * bits / 8
            cache = 2 * shape.kv_heads * shape.head_dim * self.passes.positions * KV_BYTES[kv]
            total += shape.layers * (_COPIES_IN_MEMORY * weights + cache)
        return int(total)

    def open(self, threads: int) -> None:
        """Build the stacks."""
        positions = self.passes.positions
        for shape, kv in self.parts:
            model = build_stack(shape, self.precision, kv, positions=positions)
            self.stacks.append(TimedStack(model, shape, kv, threads, positions=positions))

    def once(self) -> HalfTimes:
        """The times of one round."""
        passes, (shape, _) = self.passes, self.parts[0]
        step = self.stacks[0].milliseconds(1, passes.depth, least=_LEAST, enough_s=_ENOUGH_S)
        decode = step / shape.layers
        if shape.outputs:
            return HalfTimes(decode, decode)
        stack, layers = self.stacks[1], self.parts[1][0].layers
        chunks = [
            stack.milliseconds(passes.width, past, least=_LEAST_OF_PROMPTS, enough_s=_ENOUGH_S)
            for past in (passes.chunks if shape.heads else [0])
        ]
        mean = sum(chunks) / len(chunks)  # attention's time grows evenly with what precedes a chunk
        return HalfTimes(decode, mean / layers * passes.prompt / passes.width)
