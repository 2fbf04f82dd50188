"""Which layers a draft model keeps."""

from collections.abc import Sequence

from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec


def spaced_layers(spec: DecoderSpec, count: int) -> list[int]:
    """Layers at the largest equal distances, the first and the last among them.

    Distil-Whisper's start (Gandhi et al. 2023, arXiv 2311.00430, section 5). A single layer is the
    last one.

    Raises:
        BadInput: there are not more layers than that, or layers need others that may be missing.
    """
    if any(layer.shares_kv_of is not None for layer in spec.layers):
        raise BadInput(
            f"[draft] cannot take a few layers of {spec.family}: some read the keys and values of "
            "others; use [prune] with num_hidden_layers, or another draft model"
        )
    total = spec.num_hidden_layers
    if count >= total:
        raise BadInput(
            f"[draft] num_hidden_layers is {count}, the teacher has {total}: a draft that is not "
            "smaller than its target gains nothing; lower it"
        )
    layers = [(index * (total - 1)) // max(1, count - 1) for index in range(count - 1)]
    return _attending(spec, [*layers, total - 1])


def _attending(spec: DecoderSpec, layers: Sequence[int]) -> list[int]:
    """The layers, the first one replaced by one that attends if none of them does."""
    if any(spec.layers[layer].attends for layer in layers):
        return list(layers)
    return sorted({spec.attention_layers[0], *layers[1:]})
