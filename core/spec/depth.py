"""A decoder with fewer layers, for estimates of what it costs."""

import msgspec

from edgelm.spec.decoder import DecoderSpec


def with_depth(spec: DecoderSpec, count: int) -> DecoderSpec:
    """The decoder with its first `count` layers, at least one of which attends.

    The first layers of a hybrid may have no attention, and a decoder without any has no cache.
    """
    layers = spec.layers[:count]
    if count and not any(layer.attends for layer in layers):
        first = next((layer for layer in spec.layers if layer.attends), layers[-1])
        layers = (*layers[:-1], first)
    return msgspec.structs.replace(spec, num_hidden_layers=len(layers), layers=layers)
