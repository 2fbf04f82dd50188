"""Mixers other than attention: what a layer has in its place, with its own sizes and state.

A mixer knows its matrices (by group of precision, and the modules that make up each), its other
tensors, and what it remembers of the tokens before. `hidden` is the size of the residual stream.
"""

from typing import Literal, NamedTuple

import msgspec

Shapes = dict[str, tuple[int, ...]]
StateKind = Literal["conv", "matrix"]


class StateShape(NamedTuple):
    """What a layer without attention remembers of one sequence: its kind and its size."""

    layer: int
    kind: StateKind
    shape: tuple[int, ...]


class ShortConv(msgspec.Struct, frozen=True, tag="short_conv"):
    """LFM2's mixer: `out(c * conv(b * x))` of `b, c, x = in(input)`, each of the hidden size.

    `conv` is causal over tokens, of one kernel per channel. Its state are the last `kernel - 1`
    products `b * x`, [kernel - 1, hidden], oldest first.
    """

    kernel: int
    bias: bool = False

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups of matrices and the modules that each consists of; the output comes last."""
        return {"conv.in": ("conv.in_proj",), "conv.out": ("conv.out_proj",)}

    def modules(self, hidden: int) -> Shapes:
        """Outputs and inputs of the modules that are matrices."""
        return {"conv.in_proj": (3 * hidden, hidden), "conv.out_proj": (hidden, hidden)}

    def vectors(self, hidden: int) -> Shapes:
        """All other tensors, by name."""
        shapes: Shapes = {"conv.conv.weight": (hidden, 1, self.kernel)}
        if self.bias:
            biases = {"in_proj": 3 * hidden, "conv": hidden, "out_proj": hidden}
            shapes |= {f"conv.{name}.bias": (size,) for name, size in biases.items()}
        return shapes

    def states(self, hidden: int) -> dict[StateKind, tuple[int, ...]]:
        """What it remembers, by kind."""
        return {"conv": (self.kernel - 1, hidden)}


class GatedDelta(msgspec.Struct, frozen=True, tag="gated_delta"):
    """Qwen3.5's mixer: a linear attention whose state is decayed and corrected (arXiv 2412.06464).

    Queries, keys and values pass a causal convolution and SiLU; queries and keys are L2-normed. Of
    each value head the state S [key_dim, value_dim] becomes exp(g) S + beta k (v - S^T k)^T with
    g = -exp(A) softplus(a + dt) and beta = sigmoid(b); the output S^T q is normed and gated by z.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def key_size(self) -> int:
        """Width of all keys (or queries) together."""
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Width of all values together."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """See ShortConv."""
        inputs = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        return {
            "delta.in": tuple(f"linear_attn.{name}" for name in inputs),
            "delta.out": ("linear_attn.out_proj",),
        }

    def modules(self, hidden: int) -> Shapes:
        """See ShortConv."""
        heads = (self.value_heads, hidden)
        return {
            "linear_attn.in_proj_qkv": (self.channels, hidden),
            "linear_attn.in_proj_z": (self.value_size, hidden),
            "linear_attn.in_proj_b": heads,
            "linear_attn.in_proj_a": heads,
            "linear_attn.out_proj": (hidden, self.value_size),
        }

    def vectors(self, hidden: int) -> Shapes:
        """See ShortConv."""
        return {
            "linear_attn.conv1d.weight": (self.channels, 1, self.kernel),
            "linear_attn.dt_bias": (self.value_heads,),
            "linear_attn.A_log": (self.value_heads,),
            "linear_attn.norm.weight": (self.value_dim,),
        }

    def states(self, hidden: int) -> dict[StateKind, tuple[int, ...]]:
        """See ShortConv."""
        return {
            "conv": (self.kernel - 1, self.channels),
            "matrix": (self.value_heads, self.key_dim, self.value_dim),
        }


class Mamba2(msgspec.Struct, frozen=True, tag="mamba2"):
    """The state space layer of Granite 4 H and others (Dao and Gu, arXiv 2405.21060).

    x, B and C pass a causal convolution and SiLU. Of each head the state S [state_size, head_dim]
    becomes exp(dt a) S + B (dt x)^T with a = -exp(A) and dt = softplus(dt + bias); the output is
    S^T C + D x, scaled by SiLU(z) and then normed over the channels of a group, unless `norm` says
    otherwise. Consecutive heads share the B and C of their group.
    """

    heads: int
    head_dim: int
    n_groups: int
    state_size: int
    kernel: int
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    norm: Literal["after_gate", "before_gate", "none"] = "after_gate"

    @property
    def size(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Width of all B (or C) together."""
        return self.n_groups * self.state_size

    @property
    def sections(self) -> tuple[int, ...]:
        """Widths of z, x, B, C and dt, which the input projection gives side by side."""
        return self.size, self.size, self.group_size, self.group_size, self.heads

    @property
    def channels(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.size + 2 * self.group_size

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """See ShortConv."""
        return {"mamba.in": ("mamba.in_proj",), "mamba.out": ("mamba.out_proj",)}

    def modules(self, hidden: int) -> Shapes:
        """See ShortConv. The rows of the input are those of z, x, B, C and dt."""
        return {
            "mamba.in_proj": (self.size + self.channels + self.heads, hidden),
            "mamba.out_proj": (hidden, self.size),
        }

    def vectors(self, hidden: int) -> Shapes:
        """See ShortConv."""
        shapes: Shapes = {
            "mamba.conv1d.weight": (self.channels, 1, self.kernel),
            "mamba.dt_bias": (self.heads,),
            "mamba.A_log": (self.heads,),
            "mamba.D": (self.heads,),
        }
        if self.norm != "none":
            shapes["mamba.norm.weight"] = (self.size,)
        if self.conv_bias:
            shapes["mamba.conv1d.bias"] = (self.channels,)
        modules = self.modules(hidden).items()
        for (name, rows), biased in zip(modules, (self.in_bias, self.out_bias), strict=True):
            if biased:
                shapes[f"{name}.bias"] = rows[:1]
        return shapes

    def states(self, hidden: int) -> dict[StateKind, tuple[int, ...]]:
        """See ShortConv."""
        return {
            "conv": (self.kernel - 1, self.channels),
            "matrix": (self.heads, self.state_size, self.head_dim),
        }


class NoMixer(msgspec.Struct, frozen=True, tag="none"):
    """Nothing: the layer is its MLP alone (a student without this layer's attention)."""

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """See ShortConv."""
        return {}

    def modules(self, hidden: int) -> Shapes:
        """See ShortConv."""
        return {}

    def vectors(self, hidden: int) -> Shapes:
        """See ShortConv."""
        return {}

    def states(self, hidden: int) -> dict[StateKind, tuple[int, ...]]:
        """See ShortConv."""
        return {}


Mixer = ShortConv | GatedDelta | Mamba2 | NoMixer
