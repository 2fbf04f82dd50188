"""The embedding that gives every layer inputs of its own."""

import msgspec


class PerLayerInputs(msgspec.Struct, frozen=True):
    """A second embedding that gives every layer `size` channels of each token (Gemma 4).

    Its table is [vocab_size, layers * size]. A projection of the first embedding is added, and a
    layer adds `norm(projection(activation(gate(x)) * channels))` to its output.
    """

    size: int
    vocab_size: int
