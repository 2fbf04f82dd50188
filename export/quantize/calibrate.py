"""One pass over calibration text: how large keys and values get, how strong inputs are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelm.export.source.reference import Reference

_BATCH = 2  # sequences at a time


@dataclass(frozen=True)
class Calibration:
    """What the source does on a text.

    largest: per layer, the largest magnitudes of rotated keys and of values, each fp32
        [num_key_value_heads, head_dim].
    energy: mean square of every input channel, fp32 [in_features], by the name of the weight
        that it meets; of the head under `lm_head.weight`.
    peaks: largest magnitude of every input channel, likewise.
    """

    largest: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    energy: dict[str, torch.Tensor]
    peaks: dict[str, torch.Tensor]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name."""
        keys, values = zip(*self.largest, strict=True)
        named = {"energy": self.energy, "peaks": self.peaks}
        found = {
            f"{kind} {name}": one for kind, each in named.items() for name, one in each.items()
        }
        return found | {"keys": torch.stack(keys), "values": torch.stack(values)}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> "Calibration":
        """The inverse of `tensors`."""

        def of(kind: str) -> dict[str, torch.Tensor]:
            chosen = {name: one for name, one in tensors.items() if name.startswith(f"{kind} ")}
            return {name.removeprefix(f"{kind} "): one for name, one in chosen.items()}

        pairs = zip(tensors["keys"], tensors["values"], strict=True)
        return cls(tuple(pairs), of("energy"), of("peaks"))


def calibrate(reference: Reference, tokens: torch.Tensor) -> Calibration:
    """Run the source over int64 tokens [B, T]; memory does not grow with B."""
    cache = _largest_cache(reference)
    inputs = _Inputs()
    with _watching_inputs(reference, inputs):
        for rows in tokens.split(_BATCH):
            hidden = reference.hidden_states(rows, cache=cache)
            inputs.add("lm_head.weight", hidden)
    energy = {name: total / tokens.numel() for name, total in inputs.sums.items()}
    return Calibration(tuple(cache.largest), energy, inputs.peaks)


class _Inputs:
    """Sums of squares and largest magnitudes of inputs, per channel."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.peaks: dict[str, torch.Tensor] = {}

    def add(self, name: str, inputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2)
        total, peak = rows.square().sum(0), rows.abs().amax(0)
        if name in self.sums:
            total, peak = self.sums[name] + total, torch.maximum(self.peaks[name], peak)
        self.sums[name], self.peaks[name] = total, peak


@contextmanager
def _watching_inputs(reference: Reference, inputs: _Inputs) -> Iterator[None]:
    def watch(name: str) -> Any:
        return lambda _, arguments: inputs.add(f"{name}.weight", arguments[0])

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in reference.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _largest_cache(reference: Reference) -> Any:
    from transformers import DynamicCache

    class LargestCache(DynamicCache):
        """Stores nothing of what passes but its largest magnitude per channel."""

        def __init__(self) -> None:
            super().__init__()
            spec = reference.spec
            shape = (spec.num_key_value_heads, spec.head_dim)
            self.largest = [
                (torch.full(shape, 1e-6), torch.full(shape, 1e-6))
                for _ in range(spec.num_hidden_layers)
            ]

        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            layer_idx: int,
            *_: Any,
            **__: Any,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            passing = key_states, value_states
            for seen, new in zip(self.largest[layer_idx], passing, strict=True):
                torch.maximum(seen, new.abs().amax(dim=(0, 2)), out=seen)
            return passing

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return 0

    return LargestCache()
