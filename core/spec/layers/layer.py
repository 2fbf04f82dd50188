"""What differs between the layers of a decoder (edgelm.spec.decoder)."""

from typing import Any

import msgspec

from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import Mamba2, Mixer


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding of one layer kind (Su et al. 2021, arXiv 2104.09864).

    `scaling` is Hugging Face's `rope_parameters` without the base, e.g.
    `{"rope_type": "llama3", "factor": 8.0, ...}`; empty means unscaled. With `interleaved`, the
    checkpoint's rows of queries and keys pair channels 2i and 2i + 1, otherwise i and i + dim / 2.
    """

    theta: float
    dim: int
    scaling: dict[str, Any] = {}
    interleaved: bool = False


class LayerSpec(msgspec.Struct, frozen=True):
    """What differs between the layers of one decoder.

    Without a `mixer` of its own, a layer attends with the decoder's heads, as the other fields say.
    Without an `mlp` of its own, it has the decoder's feed-forward network.
    """

    rope: Rope | None
    window: int | None = None
    """Number of keys that a query sees, including the current one; None means all."""
    query_growth: tuple[float, int] | None = None
    """Beta and period of the factor 1 + beta * log(1 + position // period) on queries (Llama 4)."""
    mixer: Mixer | None = None
    beside: Mamba2 | None = None
    """A mixer parallel to attention, with the same inputs; their outputs are added (Falcon-H1)."""
    intermediate_size: int | None = None
    """Of the layer's MLP, if it is not the decoder's; 0: the layer has none."""
    mlp: MixtureOfExperts | None = None
    """What the layer has in place of an MLP."""
    head_dim: int | None = None
    """Channels of the layer's heads, if they are not the decoder's (Gemma 4)."""
    num_key_value_heads: int | None = None
    """The layer's key heads, if they are not the decoder's (Gemma 4)."""
    num_attention_heads: int | None = None
    """The layer's query heads, if they are fewer than the decoder's (edgelm.spec.own_sizes)."""
    shares_kv_of: int | None = None
    """The earlier layer whose keys and values the layer reads; it projects queries only."""
    values_are_keys: bool = False
    """Values are the keys' projection, before its norm and rotation (Gemma 4)."""
    double_mlp: bool = False
    """The layer's MLP has twice the decoder's intermediate size (Gemma 4)."""
    activation_sparsity: float = 0.0
    """The share of gates that the layer's MLP sets to zero, if they are normally distributed: those
    below their mean plus this quantile of standard deviations; others are reduced by as much."""

    @property
    def attends(self) -> bool:
        """Whether the layer has attention."""
        return self.mixer is None

    @property
    def recurrent(self) -> Mixer | None:
        """What the layer has in place of attention, or parallel to it."""
        return self.mixer or self.beside

    @property
    def has_cache(self) -> bool:
        """Whether the layer has rows of keys and values of its own."""
        return self.mixer is None and self.shares_kv_of is None
