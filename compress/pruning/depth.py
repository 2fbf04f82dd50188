"""A model with some of its layers, all of their sizes unchanged."""

from collections.abc import Sequence

import msgspec

from edgelm.compress.model import Model, build_model, spec_of
from edgelm.compress.pruning.axes import layer_of
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.pruning.student_config import pruned_config


def with_layers(model: Model, layers: Sequence[int]) -> Model:
    """A copy of a model with these layers, in its type.

    Args:
        model: not changed.
        layers: ascending indices.
    """
    spec = spec_of(model)
    shape = msgspec.structs.replace(Shape.from_spec(spec), num_hidden_layers=len(layers))
    state = {}
    for name, tensor in model.state_dict().items():
        layer = layer_of(name)
        if (name == "lm_head.weight" and spec.tie_word_embeddings) or (
            layer is not None and layer not in layers
        ):
            continue
        if layer is not None:
            name = name.replace(f".layers.{layer}.", f".layers.{layers.index(layer)}.", 1)
        state[name] = tensor.detach().clone()
    return build_model(pruned_config(model.config, shape, layers), state)
