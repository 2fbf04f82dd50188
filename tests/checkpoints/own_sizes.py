"""Tiny models whose layers have sizes of their own, saved as padded checkpoints."""

import copy
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.weights.own_sizes import stacked_rows
from edgelm.compress.model import Model, build_model, save_model
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.own_sizes import FIELD, padded
from edgelm.spec.tensor_shapes import tensor_shapes
from tests.checkpoints.models import tiny_model

# No attention at both ends, no MLP, neither, a narrow MLP; of layer 1 nothing is left out.
OWN: list[dict[str, Any]] = [
    {"attention": False, "intermediate_size": 32},
    {},
    {"intermediate_size": 0},
    {"attention": False},
]


# Layer 0 has half of the key heads; a narrow MLP and no attention elsewhere.
FEWER_HEADS: list[dict[str, Any]] = [
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 1, "intermediate_size": 32},
    {"attention": False},
    {},
]


class _NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing: the tests read tokens."""


def own_sizes_model(name: str, own: list[dict[str, Any]] | None = None) -> Model:
    """A tiny model of a family (of `TINY` in models.py), cut to the sizes of its layers."""
    return cut(tiny_model(name), own)


def cut(model: Model, own: list[dict[str, Any]] | None = None) -> Model:
    """A model with layers of their own sizes, by the first rows and columns of another's."""
    config = copy.deepcopy(model.config)
    attends = [layer.attends for layer in DecoderSpec.from_hf(config.to_dict()).layers]
    own = own or OWN
    others: list[dict[str, Any]] = [{}] * (len(attends) - len(own))
    layers = [dict(one) for one in (*own[:-1], *others, own[-1])]
    for one, attending in zip(layers, attends, strict=True):
        if not attending:
            one.pop("attention", None)
            one.pop("num_key_value_heads", None)
    setattr(config, FIELD, layers)
    spec = DecoderSpec.from_hf(config.to_dict())
    weights = model.state_dict()
    state = {key: _first(spec, key, weights[key]) for key in tensor_shapes(spec)}
    return build_model(config, state)


def save_own_sizes(name: str, folder: Path, own: list[dict[str, Any]] | None = None) -> Path:
    """Save `own_sizes_model` in fp32."""
    return save_student(own_sizes_model(name, own), folder)


def save_student(model: Model, folder: Path) -> Path:
    """Save a model with layers of their own sizes in fp32."""
    save_model(model, _NoTokenizer(), folder, torch.float32)
    return folder


def _first(spec: DecoderSpec, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The first rows and columns; of matrices that are stored as one, the first of each."""
    shape = tensor_shapes(spec)[name]
    if tuple(tensor.shape) == shape:
        return tensor.clone()
    own, whole = (stacked_rows(one, name) for one in (spec, padded(spec)))
    rows = torch.cat([part[:size] for part, size in zip(tensor.split(whole), own, strict=True)])
    return rows[tuple(map(slice, shape))].clone()
