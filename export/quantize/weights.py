"""The matrices and vectors of a checkpoint as the decoder executes them.

q, k and v are one matrix, gate and up are one; constants that the configuration multiplies by are
folded into the nearest weights, so that the graph has no op for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from edgelm.checkpoint.source import Checkpoint
from edgelm.export.quantize.kv_scales import KvFolding, LayerFolding
from edgelm.quantize.awq import Smoothing
from edgelm.spec.groups import EMBEDDING, HEAD, groups, split_group, tensor_names
from edgelm.spec.tensor_shapes import has_bias


class Moments(Protocol):
    """Second moments of inputs by group."""

    def __getitem__(self, group: str, /) -> torch.Tensor:
        """[in_features, in_features]."""


_RESIDUAL = ("attention.o", "mlp.down")


@dataclass(frozen=True)
class Weights:
    """Reads groups (see edgelm.quantize.precision) out of a checkpoint, in fp32.

    With a `folding`, keys, values and what reads them are scaled for an 8-bit cache. `energy` and
    `peaks` are what calibration saw (edgelm.export.quantize.calibrate.Calibration), `moments` the
    second moments of inputs (edgelm.quantize.hessians). A `smoothing` scales input channels.
    """

    checkpoint: Checkpoint
    folding: KvFolding | None = None
    energy: Mapping[str, torch.Tensor] | None = None
    peaks: Mapping[str, torch.Tensor] | None = None
    smoothing: Smoothing | None = None
    moments: Moments | None = None

    def groups(self) -> list[str]:
        """Every group that can have a precision of its own, in order of execution."""
        return groups(self.checkpoint.spec)

    def tensor_names(self, group: str) -> list[str]:
        """The checkpoint's tensors that make up a group's matrix, in order of rows."""
        return tensor_names(self.checkpoint.spec, group)

    def columns(self, group: str) -> int:
        """Inputs of a group's matrix."""
        return self.checkpoint.shapes[self.tensor_names(group)[0]][1]

    def matrix(self, group: str) -> torch.Tensor:
        """A group's weight as the decoder executes it, [out_features, in_features]."""
        tensors = [self.checkpoint.tensor(name).float() for name in self.tensor_names(group)]
        matrix = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if (columns := self._columns(group)) is not None:
            matrix = matrix * columns
        rows = self._rows(group)
        return matrix if rows is None else matrix * rows[:, None]

    def stored(self, group: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors, by name, that `matrix` would be made of: its inverse."""
        if (rows := self._rows(group)) is not None:
            matrix = matrix / rows[:, None]
        if (columns := self._columns(group)) is not None:
            matrix = matrix / columns
        names = self.tensor_names(group)
        parts = matrix.split([self.checkpoint.shapes[name][0] for name in names])
        return dict(zip(names, parts, strict=True))

    def importance(self, group: str) -> torch.Tensor | None:
        """How much errors in each input channel of a group's matrix count, [in_features]."""
        if self.energy is None or group == EMBEDDING:
            return None
        energy = self.energy[self.input_name(group)]
        columns = self._columns(group)
        return energy if columns is None else energy / columns.square()

    def input_name(self, group: str) -> str:
        """The weight under whose name calibration keeps what it saw of a group's inputs."""
        return "lm_head.weight" if group == HEAD else self.tensor_names(group)[0]

    def second_moments(self, group: str) -> torch.Tensor:
        """Second moments [in_features, in_features] of what a group's matrix multiplies."""
        assert self.moments is not None
        moments = self.moments[group]
        columns = self._columns(group)
        return moments if columns is None else moments / columns / columns[:, None]

    def peak(self, group: str) -> float:
        """The largest magnitude that calibration saw among a group's inputs."""
        assert self.peaks is not None
        peaks = self.peaks[self.input_name(group)]
        columns = self._columns(group)
        return float((peaks if columns is None else peaks / columns).max())

    def bias(self, group: str) -> torch.Tensor | None:
        """A group's bias [out_features], if the spec gives its parts one."""
        matrices = self.tensor_names(group)
        if not all(has_bias(self.checkpoint.spec, name) for name in matrices):
            return None
        names = [name.removesuffix("weight") + "bias" for name in matrices]
        tensors = [self.checkpoint.tensor(name).float() for name in names]
        bias, rows = torch.cat(tensors), self._rows(group)
        return bias if rows is None else bias * rows

    def norm(self, name: str) -> torch.Tensor:
        """A norm's weight as a plain factor."""
        spec = self.checkpoint.spec
        weight = self.checkpoint.tensor(f"model.{name}.weight").float()
        if spec.norm_plus_one:
            weight = weight + 1.0
        if name == "norm":
            weight = weight / spec.logits_divisor
        if self.folding and name.endswith(("q_norm", "k_norm")):
            factors = self.layer_folding(name).key
            factors = 1 / self._per_query_head(factors) if name.endswith("q_norm") else factors
            weight = weight * (factors.flatten() if spec.qk_norm == "full" else factors[0])
        if self.smoothing and (divisor := self.smoothing.norm(name)) is not None:
            weight = weight / divisor
        return weight

    def layer_folding(self, name: str) -> LayerFolding:
        """The folding of the layer that a group or norm belongs to."""
        assert self.folding is not None
        return self.folding.layers[split_group(name)[0]]

    def _columns(self, group: str) -> torch.Tensor | None:
        """What columns are multiplied by, [in_features]: the inputs are divided by it."""
        factors = self.smoothing.columns(group) if self.smoothing else None
        if not self.folding or not group.endswith("attention.o"):
            return factors
        values = 1 / self._per_query_head(self.layer_folding(group).value).flatten()
        return values if factors is None else factors * values

    def _rows(self, group: str) -> torch.Tensor | None:
        """What rows, and the bias, are multiplied by, [out_features]."""
        spec = self.checkpoint.spec
        if self.smoothing and (divisor := self.smoothing.rows(group)) is not None:
            return 1 / divisor
        if self.folding and group.endswith("attention.qkv"):
            folding = self.layer_folding(group)
            query, key = 1 / self._per_query_head(folding.key), folding.key
            if spec.qk_norm != "none":  # the norms after the projection carry the factors
                query, key = torch.ones_like(query), torch.ones_like(key)
            return torch.cat([part.flatten() for part in (query, key, folding.value)])
        if group.endswith(_RESIDUAL) and spec.residual_multiplier != 1:
            rows = sum(self.checkpoint.shapes[name][0] for name in self.tensor_names(group))
            return torch.full((rows,), spec.residual_multiplier)
        return None

    def _per_query_head(self, factors: torch.Tensor) -> torch.Tensor:
        """Factors per key head [kv_heads, …] repeated for the query heads that share it."""
        spec = self.checkpoint.spec
        return factors.repeat_interleave(spec.num_attention_heads // spec.num_key_value_heads, 0)
