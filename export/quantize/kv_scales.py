"""An 8-bit cache with one scale per layer that is as exact as one with a scale per channel.

Keys have outlier channels, so one scale for a whole layer wastes most of the range, and a scale
per channel costs the attention kernel a multiplication per element (a third of its time at depth
4,096). But scores are products: a key channel can be divided by a factor if the query's channel is
multiplied by it, and both factors are rows of weights. The rotation mixes channel `i` with
`i + dim / 2`, so the two share a factor. Value channels are scaled likewise, through the columns of
the output projection. Nothing is added to the graph, and without quantization nothing changes.
Weights that are on a grid already (quantization-aware distillation) stay on it where value heads
have one factor each: the columns of a group are then all multiplied by the same.

For ONNX Runtime on CUDA keys and values of a layer are brought to one range: its fast kernel for
decoding (XQA) takes one scale for both, as of 1.31.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.rope import rotated_order

ValueFactors = Literal["channel", "head", "layer"]
_MIN_ABSMAX = 1e-3  # of the largest channel: a dead channel's factor would blow up its query


@dataclass(frozen=True)
class LayerKvScaling:
    """Factors of one layer, and the ranges of its cache.

    key: fp32 [num_key_value_heads, head_dim], what key channels are multiplied by (queries are
        divided by it).
    value: fp32 [num_key_value_heads, head_dim], what value channels are multiplied by (the columns
        of the output projection are divided by it).
    key_range, value_range: the largest magnitude of every key channel and every value channel then.
    """

    key: torch.Tensor
    value: torch.Tensor
    key_range: float
    value_range: float


@dataclass(frozen=True)
class KvScaling:
    """The scaling of all layers."""

    layers: tuple[LayerKvScaling, ...]

    @classmethod
    def from_calibration(
        cls,
        spec: DecoderSpec,
        kv_absmax: Iterable[tuple[torch.Tensor, torch.Tensor]],
        *,
        shared: bool = False,
        values: ValueFactors = "channel",
        powers_of_two: bool = False,
    ) -> "KvScaling":
        """Equalize the channels of keys and values that calibration observed.

        Args:
            spec: the decoder.
            kv_absmax: per layer, the largest magnitudes of rotated keys and of values, each
                [num_key_value_heads, head_dim].
            shared: one range for keys and values.
            values: which value channels have a factor of their own; with fewer the cache is less
                exact.
            powers_of_two: factors that change no more than the exponent of a scale.
        """
        layers = []
        for layer, (keys, peaks) in zip(spec.layers, kv_absmax, strict=True):
            if values == "head":
                peaks = peaks.amax(1, keepdim=True).expand_as(peaks)
            elif values == "layer":
                peaks = peaks.amax().expand_as(peaks)
            layers.append(_equalize(spec, layer, keys, peaks, shared, powers_of_two))
        return cls(tuple(layers))


def _equalize(
    spec: DecoderSpec,
    layer: LayerSpec,
    keys: torch.Tensor,
    values: torch.Tensor,
    shared: bool,
    powers_of_two: bool,
) -> LayerKvScaling:
    half = spec.rotary_width(layer.rope) if layer.rope else 0
    if layer.rope:
        order = rotated_order(layer.rope, half, keys.shape[1])
        if order is not None:
            keys = keys[:, torch.from_numpy(order)]  # in which the graph has them
    if spec.qk_norm == "head":
        # The norm's weight is where the factor goes, and all heads share it.
        keys = keys.amax(0, keepdim=True).expand_as(keys)
    if spec.value_norm:  # likewise
        values = values.amax(0, keepdim=True).expand_as(values)
    keys = _pairwise(keys, half).clamp(min=_MIN_ABSMAX * float(keys.max()))
    values = values.clamp(min=_MIN_ABSMAX * float(values.max()))
    # Geometric means keep factors around one, and folded weights in the range of fp16 scales.
    key_range, value_range = (float(x.log().mean().exp()) for x in (keys, values))
    if shared:
        key_range = value_range = (key_range * value_range) ** 0.5
    key, value = key_range / keys, value_range / values
    if not powers_of_two:
        return LayerKvScaling(key, value, key_range, value_range)
    key, value = (torch.exp2(one.log2().round()) for one in (key, value))
    key_range, value_range = float((key * keys).max()), float((value * values).max())
    if shared:
        key_range = value_range = max(key_range, value_range)
    return LayerKvScaling(key, value, key_range, value_range)


def _pairwise(keys: torch.Tensor, half: int) -> torch.Tensor:
    """The larger of each two channels, i and i + half, that the rotation mixes, in both places."""
    first, second, rest = keys.split([half, half, keys.shape[1] - 2 * half], dim=1)
    larger = torch.maximum(first, second)
    return torch.cat([larger, larger, rest], dim=1)
