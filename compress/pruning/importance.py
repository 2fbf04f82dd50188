"""Importance of heads, neurons, channels and layers from forward passes alone.

Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2): a part
matters as much as it is active on calibration text. Activations are aggregated over the sequence
first and then over the batch; the paper's best is the mean magnitude over the sequence, then L2
over the batch. Its activations are [sequence, batch]; here they are [batch, sequence], and the
reductions are named, never positional.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgelm.compress.model import Model, spec_of
from edgelm.compress.pruning.aggregation import Aggregation, Reduction
from edgelm.compress.pruning.axes import is_hidden_norm
from edgelm.compress.pruning.experts import ExpertScores
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.reasons import reason
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.layers.mixers import Mamba2, ShortConv
from edgelm.spec.prunable import has_short_convs, mamba_of, mixture_of, mlp_neurons
from edgelm.spec.tensor_names import stored_name

_AGGREGATION = Aggregation()
_FIELDS = ("heads", "neurons", "channels", "layers")
_OPTIONAL = ("gates", "experts", "expert_neurons", "mamba_heads", "conv_channels")

_SCORES_OF_SIZES = {
    "num_experts": "experts",
    "moe_intermediate_size": "expert_neurons",
    "mamba_num_heads": "mamba_heads",
    "hidden_size": "conv_channels",
}


@dataclass(frozen=True)
class Importance:
    """Scores, fp32; higher is more important.

    heads: query heads [layers, num_attention_heads]; zero in layers without attention.
    neurons: feed-forward neurons [layers, widest MLP]; zero beyond a layer's own. In layers with
        experts, those of the shared expert.
    channels: channels of the residual stream [hidden_size], summed over all norms.
    layers: block influence [layers], 0 (the layer copies its input) to 2; ShortGPT
        (arXiv 2403.03853).
    gates: mean and mean square of every neuron's gate, [layers, 2, widest MLP]; only of models
        with sparse activations (Gemma 3n).
    experts: routed experts [layers, experts], and expert_neurons: their neurons [layers, experts,
        size] (edgelm.compress.pruning.experts); only of models with experts, zero in layers
        without.
    mamba_heads: heads of Mamba-2 layers [layers, heads], by the norm of what the output projection
        reads; only of models with such layers, zero in others.
    conv_channels: channels of short convolutions [layers, hidden_size], by what the output
        projection reads; only of models with such layers (LFM2), zero in others.
    """

    heads: torch.Tensor
    neurons: torch.Tensor
    channels: torch.Tensor
    layers: torch.Tensor
    gates: torch.Tensor | None = None
    experts: torch.Tensor | None = None
    expert_neurons: torch.Tensor | None = None
    mamba_heads: torch.Tensor | None = None
    conv_channels: torch.Tensor | None = None

    def groups(self, kv_heads: int) -> torch.Tensor:
        """Scores of KV groups [layers, kv_heads]: the sum of its query heads' scores."""
        return self.heads.view(len(self.heads), kv_heads, -1).sum(-1)

    def check(self, spec: DecoderSpec) -> None:
        """Raise BadInput unless these are the scores of a decoder of this shape."""
        shape = Shape.from_spec(spec)
        ours = (*self.heads.shape, self.neurons.shape[1], len(self.channels))
        theirs = (
            shape.num_hidden_layers,
            shape.num_attention_heads,
            _widest(spec),
            shape.hidden_size,
        )
        if ours != theirs:
            raise BadInput(
                f"these importance scores belong to another model: (layers, heads, FFN, hidden) "
                f"{ours}, this one has {theirs}; score it again"
            )
        for field, expected in _optional_shapes(spec).items():
            scores = getattr(self, field)
            if scores is not None and tuple(scores.shape) != expected:
                raise BadInput(
                    f"these importance scores belong to another model: {field} "
                    f"{tuple(scores.shape)}, this one has {expected}; score it again"
                )

    def lacks(self, spec: DecoderSpec, size: str) -> bool:
        """Whether scores are missing that the choice of what is removed with a size needs."""
        field = _SCORES_OF_SIZES.get(size)
        if field is None or field not in _optional_shapes(spec):
            return False
        return getattr(self, field) is None

    def save(self, path: Path) -> None:
        """Write all scores as safetensors."""
        from safetensors.torch import save_file

        fields = {field: getattr(self, field) for field in (*_FIELDS, *_OPTIONAL)}
        save_file(
            {field: scores.contiguous() for field, scores in fields.items() if scores is not None},
            path,
        )

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """Read what `save` wrote.

        Raises:
            BadInput: the file is damaged or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            scores = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"{path} does not hold importance scores ({reason(error)}); score the model again"
            ) from None
        if scores.keys() - set(_OPTIONAL) != set(_FIELDS):
            found = ", ".join(sorted(scores))
            raise BadInput(
                f"{path} does not hold importance scores but {found}; score the model again"
            )
        return cls(**scores)


def score(
    model: Model,
    batches: Iterable[torch.Tensor],
    aggregation: Aggregation = _AGGREGATION,
    progress: Callable[[int], None] | None = None,
) -> Importance:
    """Score every part of a model in one forward pass over calibration text.

    Args:
        model: a causal language model; not changed.
        batches: int64 tokens [B, T] each. Memory does not grow with their number.
        aggregation: over the sequence and over the batch.
        progress: called after each batch with the number of samples so far.

    Raises:
        BadInput: there is no batch.
    """
    spec = spec_of(model)
    totals, experts = _Totals(aggregation), ExpertScores(spec)
    seen = 0
    with torch.inference_mode(), _recording(model, spec, totals), experts.watching(model):
        for tokens in batches:
            totals.samples = len(tokens)
            model.base_model(input_ids=tokens.to(model.device), use_cache=False)
            seen += len(tokens)
            if progress:
                progress(seen)
    mamba, convs = mamba_of(spec), has_short_convs(spec)
    if not seen:
        raise BadInput("no calibration text: importance scores need at least one sequence")
    norms = [totals.score(name) for name in totals.names() if name[0] == "channels"]
    return Importance(
        heads=_stacked(spec, totals.score, "heads", spec.num_attention_heads),
        neurons=_stacked(spec, totals.score, "neurons", _widest(spec)),
        channels=torch.stack(norms).sum(0),
        layers=torch.stack(
            [totals.mean(("layers", layer)) for layer in range(spec.num_hidden_layers)]
        ),
        gates=_gates(spec, totals) if _is_sparse(spec) else None,
        experts=experts.experts(),
        expert_neurons=experts.neurons(),
        mamba_heads=_stacked(spec, totals.score, "mamba", mamba.heads) if mamba else None,
        conv_channels=_stacked(spec, totals.score, "conv", spec.hidden_size) if convs else None,
    )


def _stacked(
    spec: DecoderSpec, values: Callable[[tuple[str, Any]], torch.Tensor], part: str, width: int
) -> torch.Tensor:
    """A part's scores of all layers, [layers, width]; zeros where a layer has fewer, or none."""
    rows = torch.zeros(spec.num_hidden_layers, width)
    for index, layer in enumerate(spec.layers):
        if _has_part(spec, layer, part):
            scores = values((part, index))
            rows[index, : len(scores)] = scores
    return rows


def _has_part(spec: DecoderSpec, layer: LayerSpec, part: str) -> bool:
    if part == "mamba":
        return isinstance(layer.recurrent, Mamba2)
    if part == "conv":
        return isinstance(layer.mixer, ShortConv)
    return layer.attends if part == "heads" else mlp_neurons(spec, layer) > 0


def _widest(spec: DecoderSpec) -> int:
    """The most neurons that every token runs in a layer."""
    return max(mlp_neurons(spec, layer) for layer in spec.layers)


def _optional_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the scores of parts that only some models have."""
    mixture, mamba, layers = mixture_of(spec), mamba_of(spec), spec.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {}
    if mixture is not None:
        shapes["experts"] = (layers, mixture.experts)
        shapes["expert_neurons"] = (layers, mixture.experts, mixture.size)
    if mamba is not None:
        shapes["mamba_heads"] = (layers, mamba.heads)
    if has_short_convs(spec):
        shapes["conv_channels"] = (layers, spec.hidden_size)
    return shapes


def _gates(spec: DecoderSpec, totals: "_Totals") -> torch.Tensor:
    found = torch.zeros(spec.num_hidden_layers, 2, spec.mlp_width)
    for index, layer in enumerate(spec.layers):
        found[index, :, : spec.mlp_size(layer)] = totals.mean(("gates", index))
    return found


def _is_sparse(spec: DecoderSpec) -> bool:
    return any(layer.activation_sparsity for layer in spec.layers)


def reduce_sequence(values: torch.Tensor, how: Reduction) -> torch.Tensor:
    """Activations [B, T, N] to one score per sample [B, N]."""
    values = values.float()
    if how == "mean":
        return values.abs().mean(1)
    if how == "l2":
        return values.square().sum(1).sqrt()
    return values.var(1, correction=0)


class _Totals:
    """Running sums over samples, for each part of the model."""

    def __init__(self, aggregation: Aggregation) -> None:
        self.aggregation = aggregation
        self.samples = 0  # of the batch that runs
        self._sums: dict[tuple[str, Any], torch.Tensor] = {}
        self._squares: dict[tuple[str, Any], torch.Tensor] = {}
        self._counts: dict[tuple[str, Any], int] = {}

    def add(self, name: tuple[str, Any], values: torch.Tensor) -> None:
        """Add activations [B, T, N]; or [B T, N], which shared experts read."""
        if values.ndim == 2:
            values = values.unflatten(0, (self.samples, -1))
        self.add_samples(name, reduce_sequence(values, self.aggregation.sequence))

    def add_samples(self, name: tuple[str, Any], samples: torch.Tensor) -> None:
        """Add scores of samples [B, ...], in fp64 so that a large sum does not absorb the next."""
        samples = samples.cpu().double()  # on the CPU: Apple's GPUs have no fp64
        for sums, new in ((self._sums, samples), (self._squares, samples.square())):
            sums[name] = sums.get(name, 0) + new.sum(0)
        self._counts[name] = self._counts.get(name, 0) + len(samples)

    def names(self) -> Iterable[tuple[str, Any]]:
        return self._sums.keys()

    def mean(self, name: tuple[str, Any]) -> torch.Tensor:
        return (self._sums[name] / self._counts[name]).float()

    def score(self, name: tuple[str, Any]) -> torch.Tensor:
        how = self.aggregation.batch
        if how == "mean":
            return self.mean(name)
        if how == "l2":
            return self._squares[name].sqrt().float()
        count = self._counts[name]
        mean = self._sums[name] / count
        return (self._squares[name] / count - mean.square()).clamp(min=0).float()


@contextmanager
def _recording(model: Model, spec: DecoderSpec, totals: _Totals) -> Iterator[None]:
    def heads(part: str, layer: int, count: int) -> Any:
        def hook(_: nn.Module, inputs: Any) -> None:
            outputs = inputs[0].unflatten(-1, (count, -1))
            totals.add((part, layer), outputs.float().norm(dim=-1))

        return hook

    def inputs_of(part: str, layer: int) -> Any:
        return lambda _, inputs: totals.add((part, layer), inputs[0])

    def gates(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            values = output.float()
            moments = torch.stack([values.mean(1), values.square().mean(1)], dim=1)
            totals.add_samples(("gates", layer), moments)

        return hook

    def channels(name: str) -> Any:
        return lambda _, __, output: totals.add(("channels", name), output)

    def influence(layer: int) -> Any:
        def hook(_: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
            before = (inputs[0] if inputs else keywords["hidden_states"]).float()
            after = (output[0] if isinstance(output, tuple) else output).float()
            similarity = torch.cosine_similarity(before, after, dim=-1)
            if similarity.ndim == 3:  # of several residual streams (Gemma 3n)
                similarity = similarity.mean(0)
            totals.add_samples(("layers", layer), 1 - similarity.mean(1))

        return hook

    def submodule(layer: int, name: str) -> nn.Module:
        stored = stored_name(spec.family, f"model.layers.{layer}.{name}")
        return model.get_submodule(stored)  # type: ignore[no-any-return]

    hooks = []
    for index, layer in enumerate(model.base_model.layers):
        own = spec.layers[index]
        if mlp_neurons(spec, own):
            down = submodule(index, f"mlp{'.shared_expert' if own.mlp else ''}.down_proj")
            hooks.append(down.register_forward_pre_hook(inputs_of("neurons", index)))
        if _is_sparse(spec):
            gate = submodule(index, "mlp.gate_proj")
            hooks.append(gate.register_forward_hook(gates(index)))
        if isinstance(mamba := own.recurrent, Mamba2):
            output = submodule(index, "mamba.out_proj")
            hook = heads("mamba", index, mamba.heads)
            hooks.append(output.register_forward_pre_hook(hook))
        if isinstance(own.mixer, ShortConv):
            output = submodule(index, "conv.out_proj")
            hooks.append(output.register_forward_pre_hook(inputs_of("conv", index)))
        hooks.append(layer.register_forward_hook(influence(index), with_kwargs=True))
    for index in spec.attention_layers:
        output = submodule(index, "self_attn.o_proj")
        hook = heads("heads", index, spec.num_attention_heads)
        hooks.append(output.register_forward_pre_hook(hook))
    for name, module in model.named_modules():
        if is_hidden_norm(spec, f"{name}.weight"):
            hooks.append(module.register_forward_hook(channels(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
