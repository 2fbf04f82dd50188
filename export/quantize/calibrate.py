"""One pass over calibration text: the ranges of keys, values and inputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgelm.export.source.reference import Reference
from edgelm.quantize.expert_sums import ExpertSums

_BATCH = 2  # sequences at a time


@dataclass(frozen=True)
class Calibration:
    """What was observed of a source on a text.

    kv_absmax: per layer, the largest magnitudes of rotated keys and of values, each fp32
        [num_key_value_heads, head_dim].
    mean_square: of every input channel, fp32 [in_features], by the name of the weight that it
        meets; of the head under `lm_head.weight`.
    absmax: largest magnitude of every input channel, likewise.
    expert_tokens: how many tokens each expert ran, fp32 [experts], by the names of stacked
        matrices, whose `mean_square` is [experts, in_features].
    """

    kv_absmax: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    mean_square: dict[str, torch.Tensor]
    absmax: dict[str, torch.Tensor]
    expert_tokens: dict[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name."""
        keys, values = (
            {f"{at:04}": layer[which] for at, layer in enumerate(self.kv_absmax)}
            for which in (0, 1)
        )
        named = {
            "keys": keys,
            "values": values,
            "mean_square": self.mean_square,
            "absmax": self.absmax,
            "expert_tokens": self.expert_tokens,
        }
        return {
            f"{kind} {name}": one.contiguous()
            for kind, each in named.items()
            for name, one in each.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> "Calibration":
        """The inverse of `tensors`."""

        def named(kind: str) -> dict[str, torch.Tensor]:
            chosen = {name: one for name, one in tensors.items() if name.startswith(f"{kind} ")}
            return {name.removeprefix(f"{kind} "): one for name, one in chosen.items()}

        keys, values = named("keys"), named("values")
        pairs = ((keys[at], values[at]) for at in sorted(keys))
        inputs = (named(kind) for kind in ("mean_square", "absmax", "expert_tokens"))
        return cls(tuple(pairs), *inputs)


def calibrate(reference: Reference, tokens: torch.Tensor) -> Calibration:
    """Run the source over int64 tokens [B, T]; memory does not grow with B."""
    cache = _absmax_cache(reference)
    inputs, experts = _InputSums(), ExpertSums()
    with _observed_inputs(reference, inputs), experts.watching(reference.model, reference.spec):
        for rows in tokens.split(_BATCH):
            hidden = reference.hidden_states(rows, cache=cache)
            inputs.add("lm_head.weight", hidden)
    mean_square = {name: total / tokens.numel() for name, total in inputs.squares.items()}
    return Calibration(
        tuple(cache.absmax),
        mean_square | experts.mean_square(),
        inputs.absmax | experts.absmax,
        experts.tokens,
    )


class _InputSums:
    """Sums of squares and largest magnitudes of inputs, per channel."""

    def __init__(self) -> None:
        self.squares: dict[str, torch.Tensor] = {}
        self.absmax: dict[str, torch.Tensor] = {}

    def add(self, name: str, inputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2)
        squares, absmax = rows.square().sum(0), rows.abs().amax(0)
        if name in self.squares:
            squares = self.squares[name] + squares
            absmax = torch.maximum(self.absmax[name], absmax)
        self.squares[name], self.absmax[name] = squares, absmax


@contextmanager
def _observed_inputs(reference: Reference, inputs: _InputSums) -> Iterator[None]:
    def observe(name: str) -> Any:
        return lambda _, arguments: inputs.add(f"{name}.weight", arguments[0])

    hooks = [
        module.register_forward_pre_hook(observe(name))
        for name, module in reference.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _absmax_cache(reference: Reference) -> Any:
    from transformers import DynamicCache

    class AbsmaxCache(DynamicCache):
        """Stores only the largest magnitude per channel of keys and values.

        Layers without attention have none: theirs stay at the start value, and are never used.
        """

        def __init__(self) -> None:
            super().__init__()
            spec = reference.spec
            shapes = [spec.heads(layer)[1:] for layer in spec.layers]
            self.absmax = [(torch.full(shape, 1e-6), torch.full(shape, 1e-6)) for shape in shapes]

        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            layer_idx: int,
            *_: Any,
            **__: Any,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            states = key_states, value_states
            for absmax, new in zip(self.absmax[layer_idx], states, strict=True):
                torch.maximum(absmax, new.abs().amax(dim=(0, 2)), out=absmax)
            return states

        # Every batch starts without what other layers remember.
        def get_conv_state(self, *_: Any, **__: Any) -> None:
            return None

        def update_conv_state(self, conv_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return conv_states

        def get_recurrent_state(self, *_: Any, **__: Any) -> None:
            return None

        def update_recurrent_state(
            self, recurrent_states: torch.Tensor, *_: Any, **__: Any
        ) -> torch.Tensor:
            return recurrent_states

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return 0

    return AbsmaxCache()
