"""The keys of one architecture in a file's metadata."""

from pathlib import Path

import numpy as np

from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.errors import BadCheckpoint
from edgelm.spec.tensor_shapes import Shapes

_MAX_SIZE = 2**24


class Keys:
    """Reads keys without their prefix, such as `attention.head_count`, and looks at tensors."""

    def __init__(self, metadata: GgufMetadata, architecture: str, shapes: Shapes) -> None:
        self.metadata = metadata
        self.architecture = architecture
        self.shapes = shapes

    @property
    def path(self) -> Path:
        """The file's."""
        return self.metadata.path

    def key(self, name: str) -> str:
        """The whole key."""
        return f"{self.architecture}.{name}"

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self.metadata

    def size(self, name: str, default: int | None = None, *, most: int = _MAX_SIZE) -> int:
        """A whole number above 0, which must be present if it has no default."""
        value = self.metadata.integer(self.key(name), default, least=1, most=most)
        if value is None:
            raise self.missing(name)
        return value

    def count(self, name: str) -> int:
        """A whole number; 0 if the key is missing."""
        return self.metadata.integer(self.key(name), 0, most=_MAX_SIZE) or 0

    def number(self, name: str) -> float:
        """A number above 0, which must be present."""
        value = self.metadata.number(self.key(name))
        if value is None:
            raise self.missing(name)
        return value

    @property
    def layers(self) -> int:
        """Layers of the decoder; those that predict further tokens come after them."""
        return max(1, self.size("block_count") - self.count("nextn_predict_layers"))

    def each_layer(self, name: str, default: int | None = None) -> list[int]:
        """A whole number for each layer, from an array or one number for all."""
        key, layers = self.key(name), self.layers
        if not isinstance(self.metadata.values.get(key), np.ndarray):
            value = self.metadata.integer(key, default, most=_MAX_SIZE)
            if value is None:
                raise self.missing(name)
            return [value] * layers
        counts = self.metadata.numbers(key, "iu") or []
        if len(counts) not in (layers, self.size("block_count")) or not all(
            0 <= count <= _MAX_SIZE for count in counts
        ):
            raise self.metadata.wrong(key, f"one number of at least 0 for each of {layers} layers")
        return counts[:layers]

    def flags(self, name: str) -> list[bool] | None:
        """A flag for each layer; None if the key is missing."""
        key, layers = self.key(name), self.layers
        flags = self.metadata.numbers(key, "b")
        if flags is not None and len(flags) not in (layers, self.size("block_count")):
            raise self.metadata.wrong(key, f"one flag for each of {layers} layers")
        return None if flags is None else flags[:layers]

    def missing(self, name: str) -> BadCheckpoint:
        """The error for a key that every model of the architecture has."""
        return BadCheckpoint(
            f"{self.path} lacks the key {self.key(name)}, which every "
            f"{self.architecture} model has; convert the model again"
        )

    def has(self, tensor: str) -> bool:
        """Whether any layer has a tensor."""
        return any(name.endswith(f".{tensor}") for name in self.shapes)
