"""What calibration observes of the inputs of each expert.

Experts see different tokens, and some see none of a short text. Those get the mean of all others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from edgelm.quantize.expert_neurons import expert_neurons
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import tensor_names
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.tensor_shapes import stacked_by_input


class ExpertSums:
    """Sums of squares of the inputs of each expert's matrices, by the names of the stacks.

    tokens: how many tokens each expert ran, fp32 [experts].
    absmax: the largest magnitude of every input channel of all experts, [in_features].
    """

    def __init__(self) -> None:
        self.tokens: dict[str, torch.Tensor] = {}
        self.absmax: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self, model: Any, spec: DecoderSpec) -> Iterator[None]:
        """Observe the experts of a model of transformers while it runs in this block."""
        hooks = []
        for index, layer in enumerate(spec.layers):
            if layer.mlp is None:
                continue
            parts = ("gate_up", "down")
            names = [tensor_names(spec, f"layers.{index}.mlp.experts.{one}")[0] for one in parts]
            module = model.get_submodule(names[0].rpartition(".")[0])
            observe = self._observe(layer.mlp, names, stacked_by_input(spec.family))
            hooks.append(module.register_forward_pre_hook(observe))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def mean_square(self) -> dict[str, torch.Tensor]:
        """Of every input channel of each expert, [experts, in_features]."""
        means = {}
        for name, squares in self._squares.items():
            tokens = self.tokens[name][:, None]
            overall = squares.sum(0) / tokens.sum()
            means[name] = torch.where(tokens > 0, squares / tokens.clamp(min=1), overall)
        return means

    def _observe(
        self, mixture: MixtureOfExperts, names: list[str], by_input: bool
    ) -> Callable[..., None]:
        def observe(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            hidden, chosen = (one.detach().flatten(0, -2) for one in arguments[:2])
            for expert in chosen.unique().tolist():
                rows = hidden[(chosen == expert).any(-1)]
                self._add(names[0], mixture.experts, expert, rows)
                inner = expert_neurons(module, mixture, expert, rows, by_input)
                self._add(names[1], mixture.experts, expert, inner)

        return observe

    def _add(self, name: str, experts: int, expert: int, rows: torch.Tensor) -> None:
        if name not in self._squares:
            self._squares[name] = torch.zeros(experts, rows.shape[1], device=rows.device)
            self.tokens[name] = torch.zeros(experts, device=rows.device)
            self.absmax[name] = torch.zeros(rows.shape[1], device=rows.device)
        self._squares[name][expert] += rows.square().sum(0)
        self.tokens[name][expert] += len(rows)
        torch.maximum(self.absmax[name], rows.abs().amax(0), out=self.absmax[name])


def unseen_experts(tokens: Mapping[str, torch.Tensor]) -> str | None:
    """A message where experts ran for no token of the text."""
    counts = [each for name, each in tokens.items() if "gate_up" in name]
    unseen = sum(int((each == 0).sum()) for each in counts)
    if not unseen:
        return None
    total = sum(len(each) for each in counts)
    return (
        f"{unseen:,} of {total:,} experts get no token of the calibration text; their weights are "
        "rounded with the statistics of the other experts in their layer"
    )
