"""A decoder with fewer layers, for estimates of what it costs."""

from collections.abc import Sequence

import msgspec

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import lasting_layers


def with_depth(spec: DecoderSpec, count: int) -> DecoderSpec:
    """The decoder with `count` of its layers, at least one of which attends.

    The first ones; where later layers read the keys and values of earlier ones, those stay and the
    others are at equal distances, because the first ones are all of one kind (Gemma 3n, Gemma 4).
    The first layers of a hybrid may have no attention, and a decoder without any has no cache.
    """
    if lasting := lasting_layers(spec):
        return with_layers(spec, _spread(spec, lasting, max(count, len(lasting))))
    layers = spec.layers[:count]
    if count and not any(layer.attends for layer in layers):
        first = next((layer for layer in spec.layers if layer.attends), layers[-1])
        layers = (*layers[:-1], first)
    return msgspec.structs.replace(spec, num_hidden_layers=len(layers), layers=layers)


def with_layers(spec: DecoderSpec, kept: Sequence[int]) -> DecoderSpec:
    """The decoder with these layers, all that others need among them.

    Args:
        spec: the decoder.
        kept: ascending indices.
    """
    layers = tuple(
        layer
        if (source := layer.shares_kv_of) is None
        else msgspec.structs.replace(layer, shares_kv_of=kept.index(source))
        for layer in map(spec.layers.__getitem__, kept)
    )
    return msgspec.structs.replace(spec, num_hidden_layers=len(layers), layers=layers)


def _spread(spec: DecoderSpec, lasting: tuple[int, ...], count: int) -> list[int]:
    others = [index for index in range(len(spec.layers)) if index not in lasting]
    more = min(count, len(spec.layers)) - len(lasting)
    return sorted([*lasting, *(others[at * len(others) // more] for at in range(more))])
