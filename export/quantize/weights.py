"""The matrices and vectors of a checkpoint as the decoder executes them.

q, k and v are one matrix, gate and up are one; constants that the configuration multiplies by are
folded into the nearest weights, so that the graph has no op for them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.quantize.kv_scales import KvScaling, LayerKvScaling
from edgelm.export.quantize.row_order import alternating, qkv_order
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.grids import Inputs
from edgelm.spec.groups import (
    HEAD,
    TABLES,
    executed_shape,
    experts_in,
    groups,
    split_group,
    tensor_names,
)
from edgelm.spec.layers.mixers import Mamba2, ShortConv
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import HEAD_BIAS, bias_name, has_bias, stacked_by_input

_RESIDUAL = (
    "attention.o",
    "conv.out",
    "delta.out",
    "mamba.out",
    "mlp.down",
    "experts.down",
    "shared.down",
)


class DeltaWeights(NamedTuple):
    """Kernel [channels, 1, kernel], dt bias and -exp(A) [value_heads], norm [value_dim]."""

    kernel: torch.Tensor
    dt_bias: torch.Tensor
    decay_scale: torch.Tensor
    norm: torch.Tensor


class MambaWeights(NamedTuple):
    """Kernel [channels, 1, kernel], its bias [channels]; dt bias, -exp(A) and D [heads]; norm."""

    kernel: torch.Tensor
    conv_bias: torch.Tensor | None
    dt_bias: torch.Tensor
    decay_scale: torch.Tensor
    skip: torch.Tensor
    norm: torch.Tensor | None


class Router(NamedTuple):
    """Router [experts, hidden], its bias and the bias of the choice [experts], shared gate."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    selection_bias: torch.Tensor | None
    shared_gate: torch.Tensor | None


class Xielu(NamedTuple):
    """The activation xIELU (arXiv 2411.13010).

    Above zero it is `positive * x^2 + beta * x`, and below
    `negative * (expm1(min(x, eps)) - x) + beta * x`.
    """

    positive: float
    negative: float
    beta: float
    eps: float


@dataclass(frozen=True)
class Weights:
    """Reads groups (see edgelm.quantize.precision) out of a checkpoint, in fp32.

    With a `kv_scaling`, keys, values and what reads them are scaled for an 8-bit cache. A
    `smoothing` scales input channels.
    """

    checkpoint: Checkpoint
    kv_scaling: KvScaling | None = None
    smoothing: Smoothing | None = None

    def groups(self) -> list[str]:
        """Every group that can have a precision of its own, in order of execution."""
        return groups(self.checkpoint.spec)

    def tensor_names(self, group: str) -> list[str]:
        """The checkpoint's tensors that make up a group's matrix, in order of rows."""
        return tensor_names(self.checkpoint.spec, group)

    def shape(self, group: str) -> tuple[int, int]:
        """[out_features, in_features] of a group's matrix."""
        return executed_shape(self.checkpoint.spec, group, self.checkpoint.shapes)

    def columns(self, group: str) -> int:
        """Inputs of a group's matrix."""
        return self.shape(group)[1]

    def experts(self, group: str) -> int:
        """How many experts' matrices follow each other in a group's rows; 0 where it is one."""
        return experts_in(self.checkpoint.spec, group)

    def matrix(self, group: str) -> torch.Tensor:
        """A group's weight as the decoder executes it, [out_features, in_features]."""
        tensors = [self.checkpoint.tensor(name).float() for name in self.tensor_names(group)]
        if self.experts(group):
            tensors = [self._by_output(tensors[0]).flatten(0, 1)]
        matrix = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if (order := self.row_order(group)) is not None:
            matrix = matrix[order]
        if (columns := self.column_factors(group)) is not None:
            matrix = matrix * columns
        if (inputs := self.inputs(group)) is not None and inputs.order is not None:
            matrix = matrix[:, inputs.order]
        rows = self.row_factors(group)
        return matrix if rows is None else matrix * rows[:, None]

    def rows(self, group: str, start: int, end: int) -> torch.Tensor:
        """A part of the rows of a table that nothing is folded into, in fp32."""
        [name] = self.tensor_names(group)
        return self.checkpoint.rows(name, torch.arange(start, end)).float()

    def unfold(self, group: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors, by name, that `matrix` would be made of: its inverse."""
        if (rows := self.row_factors(group)) is not None:
            matrix = matrix / rows[:, None]
        if (inputs := self.inputs(group)) is not None and inputs.order is not None:
            matrix = torch.empty_like(matrix).index_copy_(1, inputs.order, matrix)
        if (columns := self.column_factors(group)) is not None:
            matrix = matrix / columns
        if (order := self.row_order(group)) is not None:
            matrix = torch.empty_like(matrix).index_copy_(0, order, matrix)
        names = self.tensor_names(group)
        if experts := self.experts(group):
            return {names[0]: self._by_output(matrix.unflatten(0, (experts, -1)))}
        parts = matrix.split([self.checkpoint.shapes[name][0] for name in names])
        return dict(zip(names, parts, strict=True))

    def bias(self, group: str) -> torch.Tensor | None:
        """A group's bias [out_features], if the spec gives its parts one."""
        if not self.has_bias(group):
            return None
        names = [HEAD_BIAS]
        if group != HEAD:
            names = [bias_name(name) for name in self.tensor_names(group)]
        tensors = [self.checkpoint.tensor(name).float().flatten() for name in names]
        bias, rows = torch.cat(tensors), self.row_factors(group)
        if (order := self.row_order(group)) is not None:
            bias = bias[order]
        if rows is not None:
            bias = bias * rows
        if (multipliers := self.checkpoint.spec.multipliers) and group.startswith("layers."):
            bias = bias / multipliers.of_inputs(split_group(group)[1])
        return bias

    def has_bias(self, group: str) -> bool:
        """Whether the spec gives all parts of a group a bias."""
        if group == HEAD:  # which may share its matrix with the embedding
            return self.checkpoint.spec.head_bias
        return all(has_bias(self.checkpoint.spec, name) for name in self.tensor_names(group))

    def norm(self, name: str) -> torch.Tensor:
        """A norm's weight as a plain factor."""
        spec = self.checkpoint.spec
        weight = self.tensor(f"model.{name}.weight")
        if spec.norm_plus_one:
            weight = weight + 1.0
        if name == "norm":
            weight = weight / spec.logits_divisor
        if self.kv_scaling and name.endswith(("q_norm", "k_norm")):
            factors = self.layer_kv_scaling(name).key
            if name.endswith("q_norm"):
                factors = 1 / self._per_query_head(name, factors)
            weight = weight * (factors.flatten() if spec.qk_norm == "full" else factors[0])
        if self.smoothing and (divisor := self.smoothing.norm(name)) is not None:
            weight = weight / divisor
        return weight

    def norm_bias(self, name: str) -> torch.Tensor | None:
        """The bias of a LayerNorm over the residual stream; None of an RMS norm.

        Zeros where the checkpoint has none (Cohere): by a bias, the graph tells one from the other.
        """
        spec = self.checkpoint.spec
        if not spec.layer_norm:
            return None
        if not spec.norm_bias:
            return torch.zeros(spec.hidden_size)
        bias = self.tensor(f"model.{name}.bias")
        if name == "norm":
            bias = bias / spec.logits_divisor
        divisor = self.smoothing.norm(name) if self.smoothing else None
        return bias if divisor is None else bias / divisor

    def value_norm(self, layer: int) -> torch.Tensor:
        """The weight of a layer's norm on values, which the checkpoint lacks, [head_dim]."""
        spec = self.checkpoint.spec
        if self.kv_scaling:
            return self.layer_kv_scaling(f"layers.{layer}.attention").value[0]
        return torch.ones(spec.heads(spec.layers[layer]).dim)

    def sinks(self, layer: int) -> torch.Tensor:
        """The sinks of a layer's query heads [heads]."""
        return self.tensor(f"model.layers.{layer}.self_attn.sinks")

    def xielu(self, layer: int) -> Xielu:
        """The parameters of a layer's xIELU, as it applies them."""
        values = {
            name: self.tensor(f"model.layers.{layer}.mlp.act_fn.{name}").flatten()
            for name in ("alpha_p", "alpha_n", "beta", "eps")
        }
        beta = float(values["beta"])
        positive, negative = (
            float(torch.nn.functional.softplus(values[name])) for name in ("alpha_p", "alpha_n")
        )
        return Xielu(positive, beta + negative, beta, float(values["eps"]))

    def conv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Kernel [hidden, 1, kernel] and bias [hidden] of a layer's short convolution."""
        name = f"model.layers.{layer}.conv.conv"
        mixer = self.checkpoint.spec.layers[layer].mixer
        assert isinstance(mixer, ShortConv)
        bias = self.tensor(f"{name}.bias") if mixer.bias else None
        return self.tensor(f"{name}.weight"), bias

    def delta(self, layer: int) -> DeltaWeights:
        """What a layer's gated delta rule has besides its projections."""
        name = f"model.layers.{layer}.linear_attn"
        return DeltaWeights(
            self.tensor(f"{name}.conv1d.weight"),
            self.tensor(f"{name}.dt_bias"),
            -self.tensor(f"{name}.A_log").exp(),
            self.tensor(f"{name}.norm.weight"),
        )

    def mamba(self, layer: int) -> MambaWeights:
        """What a Mamba-2 layer has besides its projections."""
        name = f"model.layers.{layer}.mamba"
        mixer = self.checkpoint.spec.layers[layer].recurrent
        assert isinstance(mixer, Mamba2)
        return MambaWeights(
            self.tensor(f"{name}.conv1d.weight"),
            self.tensor(f"{name}.conv1d.bias") if mixer.conv_bias else None,
            self.tensor(f"{name}.dt_bias"),
            -self.tensor(f"{name}.A_log").exp(),
            self.tensor(f"{name}.D"),
            self.tensor(f"{name}.norm.weight") if mixer.norm != "none" else None,
        )

    def router(self, layer: int) -> Router:
        """What a layer's mixture of experts has besides its matrices."""
        mixture = self.checkpoint.spec.layers[layer].mlp
        assert mixture is not None
        name = f"model.layers.{layer}.mlp"
        return Router(
            self.tensor(f"{name}.router.weight"),
            self.tensor(f"{name}.router.bias") if mixture.router_bias else None,
            self.tensor(f"{name}.expert_bias") if mixture.selection_bias else None,
            self.tensor(f"{name}.shared_expert_gate.weight") if mixture.shared_gate else None,
        )

    def _by_output(self, stack: torch.Tensor) -> torch.Tensor:
        """Experts' matrices [experts, outputs, inputs] from the checkpoint's order, or back."""
        by_input = stacked_by_input(self.checkpoint.spec.family)
        return stack.transpose(1, 2) if by_input else stack

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in fp32, under its canonical name, as it is stored."""
        return self.checkpoint.tensor(stored_name(self.checkpoint.spec.family, name)).float()

    def row_order(self, group: str) -> torch.Tensor | None:
        """A group's rows in the order of execution, if it is not that of the checkpoint."""
        if group.endswith("experts.gate_up"):
            if stacked_by_input(self.checkpoint.spec.family):
                return None  # they alternate already
            return alternating(self.shape(group)[0], self.experts(group))
        if not group.endswith("attention.qkv"):
            return None
        return qkv_order(self.checkpoint.spec, split_group(group)[0])

    def layer_kv_scaling(self, name: str) -> LayerKvScaling:
        """The cache scaling of the layer that a group or norm belongs to, or shares keys of."""
        assert self.kv_scaling is not None
        index = split_group(name)[0]
        source = self.checkpoint.spec.layers[index].shares_kv_of
        return self.kv_scaling.layers[index if source is None else source]

    def inputs(self, group: str) -> Inputs | None:
        """What the graph does to a group's inputs, for the levels of a quantized source.

        None where its parts differ in that: their levels are then not taken over.
        """
        packed = self.packed(group)
        if packed is None or packed[0].inputs is None or self._is_looked_up(group):
            return None
        first = packed[0].inputs
        rest = [one.inputs for one in packed[1:]]
        return first if all(one is not None and one.same(first) for one in rest) else None

    def _is_looked_up(self, group: str) -> bool:
        """Whether rows of a group's matrix are the inputs of the first layer."""
        return group in TABLES or (group == HEAD and self.checkpoint.spec.tie_word_embeddings)

    def packed(self, group: str) -> list[PackedMatrix] | None:
        """The quantized matrices that a group consists of; None unless all of them are."""
        names = self.tensor_names(group)
        found = [self.checkpoint.packed[name] for name in names if name in self.checkpoint.packed]
        return found if len(found) == len(names) else None

    def column_factors(self, group: str) -> torch.Tensor | None:
        """What columns are multiplied by, [in_features]: the inputs are divided by it.

        In the order of the checkpoint's columns.
        """
        folded, inputs = self.folded_columns(group), self.inputs(group)
        if inputs is None or inputs.factors is None:
            return folded
        factors = 1 / inputs.factors
        return factors if folded is None else folded * factors

    def folded_columns(self, group: str) -> torch.Tensor | None:
        """The part of the column factors by which what precedes divides the inputs."""
        factors = self.smoothing.columns(group) if self.smoothing else None
        if not self.kv_scaling or not group.endswith("attention.o"):
            return factors
        values = 1 / self._per_query_head(group, self.layer_kv_scaling(group).value).flatten()
        return values if factors is None else factors * values

    def row_factors(self, group: str) -> torch.Tensor | None:
        """What rows are multiplied by, [out_features]; and the bias, but for factors of inputs."""
        folded, multipliers = self._folded_rows(group), self._multipliers(group)
        if folded is None or multipliers is None:
            return multipliers if folded is None else folded
        return folded * multipliers

    def _multipliers(self, group: str) -> torch.Tensor | None:
        """Falcon-H1's constants of a group's rows, [out_features]."""
        spec = self.checkpoint.spec
        if spec.multipliers is None or not group.startswith("layers."):
            return None
        index, part = split_group(group)
        factors = torch.tensor(spec.multipliers.of_outputs(part)) * spec.multipliers.of_inputs(part)
        if bool((factors == 1).all()):
            return None
        sizes = [self.checkpoint.shapes[name][0] for name in self.tensor_names(group)]
        mixer = spec.layers[index].beside
        if part == "mamba.in" and mixer is not None:
            sizes = list(mixer.sections)
        return factors.repeat_interleave(torch.tensor(sizes))

    def _folded_rows(self, group: str) -> torch.Tensor | None:
        spec = self.checkpoint.spec
        if self.smoothing and (divisor := self.smoothing.rows(group)) is not None:
            return 1 / divisor
        if self.kv_scaling and group.endswith("attention.qkv") and not spec.value_norm:
            scaling = self.layer_kv_scaling(group)
            query, key = 1 / self._per_query_head(group, scaling.key), scaling.key
            if spec.qk_norm != "none":  # the norms after the projection carry the factors
                query, key = torch.ones_like(query), torch.ones_like(key)
            layer = spec.layers[split_group(group)[0]]
            gate = torch.ones(spec.heads(layer).q_size * spec.attention_gate)
            parts = (query, key, scaling.value, gate)
            return torch.cat([part.flatten() for part in parts])
        if group.endswith(_RESIDUAL) and spec.residual_multiplier != 1:
            return torch.full((self.shape(group)[0],), spec.residual_multiplier)
        return None

    def _per_query_head(self, group: str, factors: torch.Tensor) -> torch.Tensor:
        """Factors per key head [kv_heads, …] repeated for the query heads that share it."""
        spec = self.checkpoint.spec
        heads = spec.heads(spec.layers[split_group(group)[0]]).queries
        return factors.repeat_interleave(heads // len(factors), 0)
