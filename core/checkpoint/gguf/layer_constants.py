"""Tensors that llama.cpp stores as arrays of metadata, one number for each layer."""

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.checkpoint.gguf.layout.architecture import Architecture
from edgelm.errors import BadCheckpoint


def read_constants(row: Architecture, keys: Keys) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors under Hugging Face's names.

    Raises:
        BadCheckpoint: an array is missing or of the wrong type or length.
    """
    found = {}
    for key, (tensor, shape) in row.constants.items():
        for layer, value in enumerate(_numbers(keys, key)):
            found[f"model.layers.{layer}.{tensor}"] = np.full(shape, value, np.float32)
    return found


def _numbers(keys: Keys, key: str) -> list[float]:
    values = keys.metadata.values.get(key)
    if values is None:
        raise BadCheckpoint(
            f"{keys.path} lacks the key {key}, which every {keys.architecture} model has; convert "
            "the model again"
        )
    layers = keys.size("block_count")
    if isinstance(values, float) and layers <= len(keys.shapes):
        return [values] * layers
    numbers = keys.metadata.numbers(key, "f") or []
    if len(numbers) != layers:
        raise keys.metadata.wrong(key, f"one number for each of {layers} layers")
    return numbers
