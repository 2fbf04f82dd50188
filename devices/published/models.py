"""Sizes of the models in published measurements, and their work."""

import re
from functools import cache
from pathlib import Path

import msgspec

from edgelm.devices.planner.cost_model.work import Cache, Work

_FILE = Path(__file__).with_name("models.toml")
_ELEMENT = 2  # bytes per cache element: every published engine here uses 16 bits
_STATE_ELEMENT = 4


class Experts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture of experts in every layer."""

    active: int
    count: int
    ffn: int = 0
    shared_ffn: int = 0


class Recurrent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers with a state of fixed size instead of a cache (gated delta networks)."""

    layers: int
    key_heads: int
    value_heads: int
    head_dim: int

    @property
    def state(self) -> int:
        """Elements of the states of all layers: a square of the head's width for each head."""
        return self.layers * self.value_heads * self.head_dim**2


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Local layers see `tokens` tokens; every `every`-th layer sees all."""

    tokens: int
    every: int


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder by its dimensions."""

    name: str
    matches: tuple[str, ...]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    ffn: int = 0
    experts: Experts | None = None
    recurrent: Recurrent | None = None
    window: Window | None = None

    def totals(self) -> "Total":
        """The same decoder, described by its totals."""
        recurrent = self.recurrent.layers if self.recurrent else 0
        attending = self.layers - recurrent
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        # The hybrids here gate the attention's output: a second query projection.
        attention = attending * self.hidden * ((3 if recurrent else 2) * q + 2 * kv)
        recurrence = 0
        if self.recurrent:
            keys = self.recurrent.key_heads * self.recurrent.head_dim
            values = self.recurrent.value_heads * self.recurrent.head_dim
            recurrence = recurrent * self.hidden * (2 * keys + 3 * values)
        attention += recurrence
        active = everything = attention + self.layers * 3 * self.hidden * self.ffn
        if self.experts:
            one = 3 * self.hidden * self.experts.ffn
            shared = 3 * self.hidden * self.experts.shared_ffn + self.hidden * self.experts.count
            active = attention + self.layers * (one * self.experts.active + shared)
            everything = attention + self.layers * (one * self.experts.count + shared)
        head = self.vocabulary * self.hidden
        return Total(
            name=self.name,
            matches=self.matches,
            layers=self.layers,
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            parameters=everything + head * (1 if self.tied else 2),
            active_parameters=active + head * (1 if self.tied else 2),
            attention_layers=attending,
            kv_width=kv,
            q_width=q,
            recurrent_layers=recurrent,
            experts=self.experts,
            tied=self.tied,
            window=self.window,
            attention_parameters=attention,
            recurrent_parameters=recurrence,
            state=self.recurrent.state if self.recurrent else 0,
        )


class Total(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder by its totals; embeddings are counted in `parameters` and `active_parameters`.

    `attention_parameters` are those of all layers' attention, of which `recurrent_parameters`
    belong to linear attention; 0 where they are not known. `state` is the elements that recurrent
    layers remember of a sequence. `kept_parameters` are those that NVIDIA's NVFP4 and FP8
    checkpoints keep in 16 bits. A layer is an attention (or recurrent) and an MLP part, as in
    `DecoderSpec.executed_layers`.
    """

    name: str
    matches: tuple[str, ...]
    layers: int
    hidden: int
    vocabulary: int
    parameters: float
    active_parameters: float
    attention_layers: int
    kv_width: int
    q_width: int
    recurrent_layers: int = 0
    experts: Experts | None = None
    tied: bool = False
    window: Window | None = None
    attention_parameters: float = 0.0
    recurrent_parameters: float = 0.0
    state: float = 0.0
    kept_parameters: float = 0.0

    @property
    def shared_expert_parameters(self) -> float:
        """Parameters of the experts that run for every token."""
        shared = self.experts.shared_ffn if self.experts else 0
        return self.layers * 3.0 * self.hidden * shared

    def work(self, linear_bits: float, head_bits: float, wide: float = 0.0) -> Work:
        """Its work at these bits per weight; `wide` linear parameters stay in 16 bits."""
        head = self.vocabulary * self.hidden
        embeddings = head * (1 if self.tied else 2)
        linear = self.active_parameters - embeddings
        every_linear = self.parameters - embeddings
        wider = wide * (16 - linear_bits) / 8
        experts = self.experts or Experts(0, 0)
        idle = every_linear - linear
        # A layer has count - active idle experts, which give the size of all of them.
        expert_parameters = idle * experts.count / (experts.count - experts.active) if idle else 0.0
        return Work(
            layers=self.layers,
            linear_parameters=linear,
            head_parameters=head,
            linear_bytes=linear * linear_bits / 8 + wider,
            head_bytes=head * head_bits / 8,
            resident_bytes=every_linear * linear_bits / 8 + wider + embeddings * head_bits / 8,
            caches=self._caches(),
            attention_width=self.q_width * self.attention_layers,
            attention_layers=self.attention_layers,
            active_experts=experts.active,
            experts=experts.count,
            expert_bytes=expert_parameters * linear_bits / 8,
            recurrent_layers=self.recurrent_layers,
            state_bytes=2 * _STATE_ELEMENT * self.state,  # read, and written again
        )

    def _caches(self) -> tuple[Cache, ...]:
        per_layer = 2 * self.kv_width * _ELEMENT
        if self.window is None:
            return (Cache(per_layer * self.attention_layers),)
        whole = self.attention_layers // self.window.every
        local = self.attention_layers - whole
        return (Cache(per_layer * whole), Cache(per_layer * local, self.window.tokens))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[Model, ...]
    total: tuple[Total, ...]


@cache
def known_models() -> tuple[Total, ...]:
    """Every known model, in the order in which they are matched."""
    file = msgspec.toml.decode(_FILE.read_bytes(), type=_File)
    return (*(model.totals() for model in file.model), *file.total)


def model_named(name: str) -> Total | None:
    """The known model that a published name refers to, if any."""
    lowered = name.lower()
    for model in known_models():
        if any(re.search(pattern, lowered) for pattern in model.matches):
            return model
    return None
