"""Quantizes a checkpoint's matrices by one method, each only once."""

from collections.abc import Callable

import torch

from edgelm.export.quantize.float_formats import to_fp8, to_nvfp4
from edgelm.export.quantize.input_stats import InputStats
from edgelm.export.quantize.methods import METHODS, Method, ReadHessian, quantize_by
from edgelm.export.quantize.source_levels import (
    Mxfp4Experts,
    fp8_from_source,
    integers_from_source,
    mxfp4_from_source,
    nvfp4_from_source,
    source_input_peak,
)
from edgelm.export.quantize.weights import Weights
from edgelm.export.work.cache import ArtifactCache
from edgelm.quantize.gptq import Compensation
from edgelm.quantize.grids import Nvfp4Blocks
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import Quantized, joined
from edgelm.runtime.process_memory.heap import LARGE, give_back
from edgelm.spec.groups import PER_LAYER_EMBEDDING, TABLES

_PART = 2**25  # elements of a table that are quantized together
ReadMatrix = Callable[[], torch.Tensor]


class Quantizer:
    """What a dialect asks for quantized matrices.

    Args:
        weights: the source.
        method: how to quantize.
        stats: what calibration observed of the inputs; None without calibration.
        cache: for results that are needed again: quantizing takes a second a matrix, reading it
            back takes none. Nothing is stored where it is None.
        positive_scales: see `edgelm.quantize.rtn.quantize`.

    Attributes:
        taken_over: groups whose levels, so far, are those of a quantized source.
    """

    def __init__(
        self,
        weights: Weights,
        method: Method = METHODS["rtn"],
        *,
        stats: InputStats | None = None,
        cache: ArtifactCache | None = None,
        positive_scales: bool = False,
    ) -> None:
        self.weights = weights
        self.method = method
        self.stats = stats
        self.cache = cache
        self.positive_scales = positive_scales
        self.taken_over: set[str] = set()

    def quantize(self, group: str, matrix: ReadMatrix, precision: Int4 | Int8) -> Quantized:
        """A group's matrix as integers; it is read only if it is not in the cache.

        The levels of a quantized source are taken over where the precision holds them.
        """
        source = integers_from_source(
            self.weights, group, precision, positive_scales=self.positive_scales
        )
        if source is not None:
            self.taken_over.add(group)
            return source
        name = f"{group} {self.grid(precision)}"
        found = self._load(name)
        if found is None:
            if group == PER_LAYER_EMBEDDING:
                quantized = self._quantize_rows(group, precision)
            else:
                quantized = self._quantize(group, _read(matrix), precision)
            tensors = {key: one for key, one in vars(quantized).items() if torch.is_tensor(one)}
            found = self._save(name, tensors)
        return Quantized(
            4 if isinstance(precision, Int4) else 8,
            precision.group_size,
            found["levels"],
            found["scales"],
            found.get("zero_points"),
        )

    def _quantize_rows(self, group: str, precision: Int4 | Int8) -> Quantized:
        """A table a part at a time: in fp32 it can be larger than the whole model."""
        rows, columns = self.weights.shape(group)
        step = max(1, _PART // columns)
        return joined(
            [
                self._quantize(group, self.weights.rows(group, at, min(at + step, rows)), precision)
                for at in range(0, rows, step)
            ]
        )

    def _quantize(self, group: str, matrix: torch.Tensor, precision: Int4 | Int8) -> Quantized:
        importance = self.importance(group)
        experts = self.weights.experts(group) if importance is not None else 0
        each = [importance] if importance is None or not experts else list(importance)
        parts = [
            quantize_by(
                self.method,
                part,
                precision,
                one,
                self._hessian(group),
                positive_scales=self.positive_scales,
            )
            for part, one in zip(matrix.chunk(len(each)), each, strict=True)
        ]
        return parts[0] if len(parts) == 1 else joined(parts)

    def fp8(self, group: str, matrix: ReadMatrix) -> tuple[torch.Tensor, torch.Tensor]:
        """E4M3 values [N, K] and scales [N] of a group's matrix, a source's own if it has them."""
        if (source := fp8_from_source(self.weights, group)) is not None:
            self.taken_over.add(group)
            return source
        name = f"{group} fp8"
        found = self._load(name)
        if found is None:
            values, scales = to_fp8(_read(matrix), self._compensation(group))
            found = self._save(name, {"values": values, "scales": scales})
        return found["values"], found["scales"]

    def nvfp4(self, group: str, matrix: ReadMatrix) -> Nvfp4Blocks:
        """A group's matrix in NVFP4, a source's own if it has it."""
        if (source := nvfp4_from_source(self.weights, group)) is not None:
            self.taken_over.add(group)
            return source
        name = f"{group} nvfp4"
        found = self._load(name)
        if found is None:
            importance = None if self.method.rounding == "hqq" else self.importance(group)
            blocks = to_nvfp4(_read(matrix), importance, self._compensation(group))
            found = self._save(name, blocks._asdict())
        return Nvfp4Blocks(**found)

    def mxfp4(self, group: str) -> Mxfp4Experts:
        """A group's experts as the source stores them; they are never quantized to that."""
        self.taken_over.add(group)
        return mxfp4_from_source(self.weights, group)

    def importance(self, group: str) -> torch.Tensor | None:
        """How much errors in each input channel count, [in_features]; None where unknown."""
        return None if self.stats is None else self.stats.importance(group)

    def input_peak(self, group: str) -> float:
        """The largest magnitude of a group's inputs: a source's own, or what calibration saw."""
        if (source := source_input_peak(self.weights, group)) is not None:
            return source
        assert self.stats is not None, "formats with quantized inputs need calibration"
        return self.stats.peak(group)

    def grid(self, precision: Int4 | Int8) -> str:
        """The levels that a matrix is quantized to, in words."""
        positive = self.positive_scales and precision.symmetric
        return describe(precision) + (", positive scales" if positive else "")

    def dequantized(self, group: str, precision: Int4 | Int8) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors of a group, fp32, as they would be for what is stored."""
        weights = self.weights
        quantized = self.quantize(group, lambda: weights.matrix(group), precision)
        return weights.unfold(group, quantized.dequantize(weights.columns(group)))

    def _load(self, name: str) -> dict[str, torch.Tensor] | None:
        return None if self.cache is None else self.cache.load_tensors(name)

    def _save(self, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {key: one.contiguous() for key, one in tensors.items()}
        if self.cache is not None:
            self.cache.save_tensors(name, tensors)
        return tensors

    def _hessian(self, group: str) -> ReadHessian | None:
        stats = self.stats
        if group in TABLES or stats is None or stats.hessians is None:
            return None
        if self.weights.experts(group):
            return None  # rounded to nearest: see Hessians
        return lambda: stats.hessian(group)

    def _compensation(self, group: str) -> Compensation | None:
        hessian = self._hessian(group)
        return Compensation(hessian()) if self.method.rounding == "gptq" and hessian else None


def _read(matrix: ReadMatrix) -> torch.Tensor:
    read = matrix()
    if read.numel() > LARGE:
        give_back()  # what the matrix before this one left
    return read
