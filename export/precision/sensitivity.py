"""What each group's quantization alone costs in KL, measured in one streamed pass.

For every group the source runs again with only that group quantized. All those runs are
batched into one pass over the layers: a run joins at its layer, as one more item of the batch, and
shares the unquantized layers after it with all others. Weights are therefore read once, and
memory is one layer and `groups × tokens × hidden` activations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.head import Head
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.groups import HEAD

Progress = Callable[[int, int], None]
_SHARED = "shared_kv_states"  # the argument of Gemma 3n's and 4's layers
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


# Keys and values by kind of layer, which later layers read in place of their own (Gemma 4).
_Shared = dict[str, tuple[torch.Tensor, ...]]


class _Run(NamedTuple):
    """The source with one group quantized: hidden states so far, and shared keys.

    The states are [B, T, H], or [streams, B, T, H] (AltUp).
    """

    states: torch.Tensor
    shared: _Shared

    @property
    def batch(self) -> int:
        """Sequences, of all runs that are joined here."""
        return self.states.shape[-3]


def _joined(runs: Sequence[_Run]) -> _Run:
    """Several runs as one of a larger batch."""
    shared = {
        kind: tuple(
            torch.cat(parts) for parts in zip(*(run.shared[kind] for run in runs), strict=True)
        )
        for kind in runs[0].shared
    }
    return _Run(torch.cat([run.states for run in runs], -3), shared)


def _parted(run: _Run, count: int) -> list[_Run]:
    """What `_joined` joined."""
    parts = [
        {kind: tuple(one.chunk(count)[at] for one in both) for kind, both in run.shared.items()}
        for at in range(count)
    ]
    return [_Run(*one) for one in zip(run.states.chunk(count, -3), parts, strict=True)]


def _repeated(own: Any, batch: int) -> Any:
    """What belongs to the sequences [B, ...], for each of the runs in a batch."""
    if not isinstance(own, torch.Tensor) or own.ndim < 2 or len(own) == batch:
        return own
    return own.repeat(batch // len(own), *[1] * (own.ndim - 1))


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
        self.runs: dict[str, _Run] = {}  # by group
        self.last_states: torch.Tensor | None = None  # of the source, behind the last layer

    @contextmanager
    def batched_perturbations(self) -> Iterator[None]:
        hooks = [
            layer.register_forward_pre_hook(self._at(index), with_kwargs=True)
            for index, layer in enumerate(self.reference.layers)
        ]
        hooks.append(self.reference.layers[-1].register_forward_hook(self._keep_states))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_states(self, _: Any, __: Any, out: Any) -> None:
        self.last_states = out[0] if isinstance(out, tuple) else out

    def _at(self, index: int) -> Callable[..., None]:
        def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            # Mask and rotation are the same for all sequences; one row serves any batch.
            rest = {key: _first_row(value) for key, value in kwargs.items()}
            rest.pop("hidden_states", None)
            shared = kwargs.get(_SHARED)

            def run(before: _Run) -> _Run:
                # A sequence's own inputs of the layer (Gemma 4) follow it into every batch.
                own = [_repeated(one, before.batch) for one in args[1:]]
                if shared is not None:  # which the layer may add to
                    rest[_SHARED] = type(shared)(before.shared)
                # forward, not __call__: this hook must not run again.
                out = layer.forward(before.states, *own, **rest)
                after: torch.Tensor = out[0] if isinstance(out, tuple) else out
                return _Run(after, {} if shared is None else dict(rest[_SHARED]))

            with self.reference.cached_reads():
                self._advance(run)
                for group in self.weights.groups():
                    if group.startswith(f"layers.{index}."):
                        with self._quantized(group):
                            self.runs[group] = run(_Run(hidden, dict(shared or {})))
            self.progress(index + 1, len(self.reference.layers))

        return enter

    def _advance(self, run: Callable[[_Run], _Run]) -> None:
        names = list(self.runs)
        for at in range(0, len(names), _BATCH):
            batch = names[at : at + _BATCH]
            after = run(_joined([self.runs[name] for name in batch]))
            self.runs |= zip(batch, _parted(after, len(batch)), strict=True)

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
        finish = self.reference.final_states
        source = _Source(self.reference.logits(clean.flatten(0, 1), head))

        def kl(hidden: torch.Tensor, matrix: Head) -> float:
            return source.kl(self.reference.logits(hidden.flatten(0, 1), matrix))

        with torch.inference_mode():
            result = {group: kl(finish(run.states), head) for group, run in self.runs.items()}
            exits = spec.altup.exit if spec.altup else {}
            for group in exits:
                assert self.last_states is not None
                with self._quantized(group):
                    result[group] = kl(finish(self.last_states), head)
        [name] = self.weights.tensor_names(HEAD)
        result[HEAD] = kl(clean, self.quantizer.dequantized(HEAD, self.precision)[name])
        # What precedes the layers, such as the embedding, takes a pass of its own. A tied table is
        # one group: its cost at the input and its cost at the output add up.
        measured = {*self.runs, *exits} | (set() if spec.tie_word_embeddings else {HEAD})
        for entry in (group for group in self.weights.groups() if group not in measured):
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
