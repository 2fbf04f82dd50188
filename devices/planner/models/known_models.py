"""Shapes of current small language models, by name, from known_models.toml."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from edgelm.spec.decoder import DecoderSpec

_FILE = Path(__file__).with_name("known_models.toml")
# What a configuration must have, though neither size nor speed depends on it.
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu"}
# Parameters in millions from which a class begins. Within one, newer models score better as a
# rule; between two, the larger ones do.
_CLASSES = (
    ("25B and more", 25_000),
    ("12B to 15B", 11_500),
    ("7B to 9B", 6_500),
    ("3B to 5B", 2_800),
    ("1B to 3B", 900),
    ("below 1B", 0),
)


class KnownModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model by its shape; `source` is its repository on Hugging Face."""

    name: str
    source: str
    released: str
    parameters_m: float
    config: dict[str, Any]

    @property
    def spec(self) -> DecoderSpec:
        """Its shape."""
        return DecoderSpec.from_hf(_DEFAULTS | self.config)

    @property
    def quality_class(self) -> str:
        """Models of a class answer about equally well; see `_CLASSES`.

        A per-layer embedding does not count: its maker names Gemma 3n E4B after the other 4 billion
        parameters.
        """
        size = self.parameters_m - self.spec.per_layer_embedding_parameters / 1e6
        return next(name for name, least in _CLASSES if size >= least)

    @property
    def rank(self) -> int:
        """The class as a number, 0 for the largest models."""
        return [name for name, _ in _CLASSES].index(self.quality_class)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[KnownModel, ...]


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Every known model, largest first."""
    return msgspec.toml.decode(_FILE.read_bytes(), type=_File).model
