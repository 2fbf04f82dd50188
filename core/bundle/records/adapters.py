"""Adapters that a bundle's requests choose from, and where its graph takes their factors."""

from typing import Annotated

import msgspec

FOLDER = "adapters"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_TensorName = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class LowRankInput(msgspec.Struct, frozen=True):
    """Two optional inputs of the graph, which change the product of one group's matrix.

    With `x` [.., inputs] the graph adds `x @ down @ up` to that product. `down` is [inputs, rank],
    `up` [rank, outputs], both in the type of the activations; the rank is open, and 0 where a run
    does not give them.
    """

    group: _TensorName
    down: _TensorName
    up: _TensorName
    inputs: _Size
    outputs: _Size


class AdapterGate(msgspec.Struct, frozen=True):
    """Difference between the bundle with an adapter and its source with the adapter merged.

    KL, top-1 and perplexity as those of the bundle's own gate, of `tokens` tokens. `effect` is how
    strongly the adapter acts: the factor by which the change of the source's logits has to be
    multiplied to fit the bundle's change best (1 is right, -1 a wrong sign); None where the adapter
    changes nothing.
    """

    kl: Annotated[float, msgspec.Meta(ge=0)]
    top1: _Share
    perplexity_ratio: Annotated[float, msgspec.Meta(ge=0)]
    tokens: _Size
    effect: float | None
    passed: bool
    enforced: bool


class AdapterRecord(msgspec.Struct, frozen=True):
    """An adapter in a bundle.

    `file` has the tensors `GROUP.down` and `GROUP.up`, float32, of the groups that it changes: see
    LowRankInput. `rank` is the largest of them. `source_sha256` is the hash of the PEFT file that
    it was made of, and `base` the model that PEFT names in it.
    """

    name: Annotated[str, msgspec.Meta(pattern=NAME)]
    file: str
    rank: _Size
    source_sha256: str
    base: str = ""
    gate: AdapterGate | None = None


def adapter_file(name: str) -> str:
    """Where a bundle has the adapter of this name."""
    return f"{FOLDER}/{name}.safetensors"
