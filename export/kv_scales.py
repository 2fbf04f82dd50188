"""Scales of an int8 key-value cache: one per channel, from what a calibration text produces."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KvScales:
    """Per layer, the scales of keys and of values, each fp32 [num_key_value_heads, head_dim]."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
