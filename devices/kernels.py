"""What the matrix kernels of each engine take: facts that pruning and export both keep to."""

from typing import NamedTuple

from edgelm.precision import GROUP_SIZES


class Kernels(NamedTuple):
    """What an engine's kernels take.

    `int4_groups` are its group sizes for int4. With `pads` the inputs need not be a multiple of
    them. `grouped` says that it has zero points, and int8 in groups; else int8 has one scale per
    output channel.
    """

    engine: str
    int4_groups: tuple[int, ...]
    grouped: bool
    pads: bool

    @property
    def width_multiple(self) -> int:
        """What a matrix's inputs must be a multiple of to have an int4 kernel."""
        return 1 if self.pads else self.int4_groups[0]


# TensorRT's documentation of Dequantize names blocks of 64 and 128 for int4; TensorRT-RTX 1.7 was
# seen to compile 32 as well. Both refuse zero points.
KERNELS = {
    "onnxruntime": Kernels("ONNX Runtime", GROUP_SIZES, grouped=True, pads=True),
    "onnxruntime-cuda": Kernels("ONNX Runtime", GROUP_SIZES, grouped=True, pads=True),
    "tensorrt": Kernels("TensorRT", (64, 128), grouped=False, pads=False),
    "tensorrt-rtx": Kernels("TensorRT-RTX", (32, 64, 128), grouped=False, pads=False),
}
