"""How strong each input channel of a linear layer is: what rounding errors are weighed by."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edgelm.compress.model import Model


def input_energy(model: Model, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean square of every input channel, fp32 [K] on the CPU, by the name of the weight.

    Args:
        model: a causal language model; its decoder layers are watched.
        batches: int64 tokens [B, T] each.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            square = inputs[0].detach().float().square().flatten(0, -2).sum(0).cpu()
            sums[name] = sums[name] + square if name in sums else square

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(f"model.layers.{name}.weight"))
        for name, module in model.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            for tokens in batches:
                model.model(input_ids=tokens.to(model.device), use_cache=False)
                count += tokens.numel()
    finally:
        for one in hooks:
            one.remove()
    return {name: total / count for name, total in sums.items()}
