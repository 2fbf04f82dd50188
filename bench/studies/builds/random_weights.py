"""Random weights of a decoder's shape, made as they are written: no checkpoint is stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.studies.builds.random_checkpoint import tiled
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.quantize.quantizer import Quantizer, ReadMatrix
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import Quantized
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import tensor_shapes

_PERIOD = 1_000_003  # a prime, so that no two rows are alike
_STD = 0.02  # of the weights of trained decoders


def random_checkpoint(config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of this `config.json`, whose matrices are not stored anywhere."""
    spec = DecoderSpec.from_hf(config)

    def read(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is made up where it is needed")

    return Checkpoint("random", Path(), dict(config), spec, tensor_shapes(spec), read, ())


@dataclass(frozen=True)
class RandomWeights(Weights):
    """Normally distributed tensors; no biases."""

    def matrix(self, group: str) -> torch.Tensor:
        # In fp16, since the embedding of a large vocabulary takes gigabytes in fp32.
        return tiled(torch.randn(_PERIOD).half() * _STD, self.shape(group))

    def norm(self, name: str) -> torch.Tensor:
        return 1 + torch.randn(self.checkpoint.shapes[f"model.{name}.weight"]) * _STD


class RandomQuantizer(Quantizer):
    """Random integers of the right shapes: quantizing would take longer than compiling."""

    def quantize(self, group: str, matrix: ReadMatrix, precision: Int4 | Int8) -> Quantized:
        rows, columns = self.weights.shape(group)
        bits, size = 4 if isinstance(precision, Int4) else 8, precision.group_size
        blocks = -(-columns // size)
        values = torch.randint(1, 1 << bits, (_PERIOD,), dtype=torch.uint8)
        levels = tiled(values, (rows, blocks, size))
        scales = (torch.rand(rows, blocks) + 0.5) * _STD / (1 << (bits - 2))
        return Quantized(bits, size, levels, scales.half(), None)
