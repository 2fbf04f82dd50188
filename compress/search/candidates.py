"""A shape with its costs as the planner predicts them for a device."""

from collections.abc import Callable, Sequence
from functools import cache

import msgspec

from edgelm.compress.pruning.shape import Shape
from edgelm.compress.search.settings import Budget
from edgelm.devices.kernels import kernels_of
from edgelm.devices.planner.plan import predict
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import mamba_of


class Candidate(msgspec.Struct, frozen=True):
    """A shape with its predicted costs, and its losses as they are measured.

    parameters: outside the embeddings. missing: limits of the budget that it exceeds.
    pruned: KL from the teacher on held-out rows, in nats per token, before any training;
    distilled: the same after each round of lightweight distillation.
    """

    shape: Shape
    kind: str
    parameters: int
    tokens_per_second: float
    first_token_ms: float
    memory_bytes: int
    missing: tuple[str, ...] = ()
    pruned: float | None = None
    distilled: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """The latest divergence."""
        if self.distilled:
            return self.distilled[-1]
        return float("inf") if self.pruned is None else self.pruned


class CostModel:
    """The planner's predictions for shapes of one decoder on one device.

    Args:
        spec: the decoder.
        profile: of the device.
        budget: the limits.
        layers: which layers a student with this number of them keeps; None before that is known.
            It matters where layers differ in size.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        profile: Profile,
        budget: Budget,
        layers: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        self.spec, self.profile, self.budget = spec, profile, budget
        self._layers = cache(layers) if layers else lambda _: None
        self.kernels = kernels_of(profile.engine(budget.request.engine).name)

    def __call__(self, shape: Shape) -> Candidate:
        """Predicted costs; `missing` lists the limits that are exceeded."""
        spec = shape.applied_to(self.spec, self._layers(shape.num_hidden_layers))
        context = self.budget.request.context or min(4096, spec.max_position_embeddings)
        request = msgspec.structs.replace(self.budget.request, context=context)
        planned = predict(spec, self.profile, request)
        missing = list(planned.missing)
        first = planned.prefill_ms.value
        if self.budget.first_token_ms is not None and first > self.budget.first_token_ms:
            missing.append(f"first token {first:.0f} ms, limit {self.budget.first_token_ms:.0f} ms")
        limit = self._max_parameters()
        if spec.linear_parameters > limit:
            missing.append(
                f"{spec.linear_parameters / 1e6:.1f} M parameters, limit {limit / 1e6:.1f} M"
            )
        return Candidate(
            shape,
            kind_of(shape, self.spec),
            spec.linear_parameters,
            planned.tokens_per_second.value,
            first,
            planned.total_bytes,
            tuple(missing),
        )

    def _max_parameters(self) -> float:
        limit = self.budget.parameters
        if limit is None:
            return float("inf")
        return limit * self.spec.linear_parameters if limit <= 1 else limit

    def check_kernels(self, shape: Shape) -> None:
        """Raise BadInput if the device's engine has no int4 kernels for a shape."""
        multiple = self.kernels.width_multiple
        widths = {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads * head_dim": shape.num_attention_heads * self.spec.head_dim,
        }
        if shape.moe_intermediate_size is not None:
            widths["moe_intermediate_size"] = shape.moe_intermediate_size
        if shape.mamba_num_heads is not None and (mamba := mamba_of(self.spec)):
            widths["mamba_num_heads * head_dim"] = shape.mamba_num_heads * mamba.head_dim
        for name, width in widths.items():
            if width % multiple:
                raise BadInput(
                    f"illegal shape for {self.kernels.engine}: {name} {width} is not a multiple of "
                    f"{multiple}, which its int4 kernels need; use "
                    f"{width // multiple * multiple} or {-(-width // multiple) * multiple}"
                )


def kind_of(shape: Shape, spec: DecoderSpec) -> str:
    """The pruned axes: `depth`, `width`, `depth and width`, or `unpruned`."""
    full = Shape.from_spec(spec)
    depth = shape.num_hidden_layers < full.num_hidden_layers
    width = msgspec.structs.replace(shape, num_hidden_layers=full.num_hidden_layers) != full
    named = [name for name, pruned in (("depth", depth), ("width", width)) if pruned]
    return " and ".join(named) or "unpruned"


def table(candidates: Sequence[Candidate]) -> str:
    """All candidates with predicted speed, memory and quality, as text."""
    head = f"{'shape':<52} {'M':>6} {'tok/s':>7} {'TTFT ms':>8} {'MB':>7} {'pruned':>7} distilled"
    lines = [
        f"{one.shape!s:<52} {one.parameters / 1e6:>6.1f} {one.tokens_per_second:>7.1f} "
        f"{one.first_token_ms:>8.0f} {one.memory_bytes / 1e6:>7.0f} "
        f"{'-' if one.pruned is None else format(one.pruned, '.3f'):>7} "
        f"{' '.join(format(loss, '.3f') for loss in one.distilled) or '-'}"
        for one in candidates
    ]
    return "\n".join([head, *lines])
