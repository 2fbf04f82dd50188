"""What each group's quantization alone costs in KL, measured in one streamed pass.

For every group the source runs again with only that group quantized. All those runs are
batched into one pass over the layers: a run joins at its layer, as one more item of the batch, and
shares the unquantized layers after it with all others. Weights are therefore read once, and
memory is one layer and `groups × tokens × hidden` activations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.groups import EMBEDDING, HEAD
from edgelm.spec.tensor_names import stored_name

Progress = Callable[[int, int], None]
_BATCH = 8  # runs that pass a layer together


def measure_sensitivity(
    reference: Reference,
    quantizer: Quantizer,
    tokens: torch.Tensor,
    precision: Int4 | Int8,
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """KL to the source, in nats per token, of quantizing one group at a time.

    Args:
        reference: the source model.
        quantizer: of the same model.
        tokens: int64 [B, T]; a few hundred tokens rank the groups well enough.
        precision: what the group would be stored as.
        progress: called with the number of layers done and their total.
    """
    runs = _PerturbedRuns(reference, quantizer, precision, progress)
    with runs.batched_perturbations():
        clean = reference.hidden_states(tokens)
    return runs.divergences(clean, tokens)


def _first_row(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim > 1:
        return value[:1]
    return tuple(map(_first_row, value)) if isinstance(value, tuple) else value


class _PerturbedRuns:
    def __init__(
        self,
        reference: Reference,
        quantizer: Quantizer,
        precision: Int4 | Int8,
        progress: Progress,
    ) -> None:
        self.reference = reference
        self.quantizer = quantizer
        self.weights = quantizer.weights
        self.precision = precision
        self.progress = progress
        self.states: dict[str, torch.Tensor] = {}  # group -> hidden states [B, T, H] so far

    @contextmanager
    def batched_perturbations(self) -> Iterator[None]:
        hooks = [
            layer.register_forward_pre_hook(self._at(index), with_kwargs=True)
            for index, layer in enumerate(self.reference.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _at(self, index: int) -> Callable[..., None]:
        def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            # Mask and rotation are the same for all sequences; one row serves any batch.
            rest = {key: _first_row(value) for key, value in kwargs.items()}
            rest.pop("hidden_states", None)

            def run(states: torch.Tensor) -> torch.Tensor:
                # forward, not __call__: this hook must not run again.
                out = layer.forward(states, *args[1:], **rest)
                after: torch.Tensor = out[0] if isinstance(out, tuple) else out
                return after

            with self.reference.cached_reads():
                self._advance(run)
                for group in self.weights.groups():
                    if group.startswith(f"layers.{index}."):
                        with self._quantized(group):
                            self.states[group] = run(hidden)
            self.progress(index + 1, len(self.reference.layers))

        return enter

    def _advance(self, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        names = list(self.states)
        for at in range(0, len(names), _BATCH):
            batch = names[at : at + _BATCH]
            states = run(torch.cat([self.states[name] for name in batch]))
            for name, part in zip(batch, states.chunk(len(batch)), strict=True):
                self.states[name] = part

    @contextmanager
    def _quantized(self, group: str) -> Iterator[None]:
        self.reference.overrides = self.quantizer.dequantized(group, self.precision)
        try:
            yield
        finally:
            self.reference.overrides = {}

    def divergences(self, clean: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        """KL of every run's final state, and of the two ends of the model."""
        spec, head = self.reference.spec, self.reference.head()
        norm = self.reference.model.get_submodule(stored_name(spec.family, "model.norm"))
        source = _Source(self.reference.logits(clean.flatten(0, 1), head))

        def kl(hidden: torch.Tensor, matrix: torch.Tensor) -> float:
            return source.kl(self.reference.logits(hidden.flatten(0, 1), matrix))

        with torch.inference_mode():
            result = {group: kl(norm(states), head) for group, states in self.states.items()}
        [name] = self.weights.tensor_names(HEAD)
        result[HEAD] = kl(clean, self.quantizer.dequantized(HEAD, self.precision)[name])
        # The embedding changes the first layer's input, which takes a pass of its own. A tied
        # table is one group: its cost at the input and its cost at the output add up.
        entry = HEAD if spec.tie_word_embeddings else EMBEDDING
        with self._quantized(entry):
            hidden = self.reference.hidden_states(tokens)
        result[entry] = result.get(entry, 0.0) + kl(hidden, head)
        return result


class _Source:
    """The source's distribution, and KL to it with one pass over the other's logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        log_probabilities = torch.log_softmax(logits, -1)
        self.probabilities = log_probabilities.exp()
        self.negative_entropy = (self.probabilities * log_probabilities).sum(-1)

    def kl(self, logits: torch.Tensor) -> float:
        cross = torch.logsumexp(logits, -1) - torch.linalg.vecdot(self.probabilities, logits)
        return max(0.0, float((self.negative_entropy + cross).mean()))
