"""Which sizes and layers pruning can change, of every family."""

import msgspec
import pytest

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import (
    fixed_sizes,
    lasting_layers,
    pruned_mlp_size,
    with_intermediate_size,
)
from tests.checkpoints.models import DENSE, tiny_config

FIXED = {
    "lfm2": {"hidden_size": "convolutions"},
    "granite-hybrid": {"hidden_size": "Mamba-2"},
    "gemma3n": {"num_key_value_heads": "keys and values of others"},
    "gemma4": {"num_key_value_heads": "keys and values of others"},
    "gemma4-dense": {"num_key_value_heads": "different numbers of key heads"},
}
# The last layers of each kind with keys and values of their own; the last layer of Gemma 4.
LASTING = {"gemma3n": (2, 3), "gemma4": (1, 2, 6), "gemma4-dense": (6,)}


def spec_named(name: str) -> DecoderSpec:
    return DecoderSpec.from_hf(tiny_config(name).to_dict())


@pytest.mark.parametrize("name", DENSE)
def test_what_stays(name: str) -> None:
    spec = spec_named(name)
    found, expected = fixed_sizes(spec), FIXED.get(name, {})
    assert found.keys() == expected.keys()
    assert all(reason in found[size] for size, reason in expected.items())
    assert lasting_layers(spec) == LASTING.get(name, ())


def test_neurons_of_layers_that_differ() -> None:
    listed, doubled, single = map(spec_named, ("gemma3n", "gemma4", "nemotron-h"))
    sizes = [pruned_mlp_size(listed, layer, 80) for layer in listed.layers]
    assert sizes == [80, 64, 80, 80, 80, 80, 64]
    assert [pruned_mlp_size(doubled, layer, 40) for layer in doubled.layers] == [40] * 3 + [80] * 4
    sizes = [pruned_mlp_size(single, layer, 40) for layer in single.layers]
    assert sizes == [0, 40, 0, 0, 0, 40, 40, 0]


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "nemotron-h", "llama"])
@pytest.mark.parametrize("size", [24, 64, 80, 96])
def test_a_narrower_decoder(name: str, size: int) -> None:
    spec = spec_named(name)
    narrower = with_intermediate_size(spec, size)
    sizes = [narrower.mlp_size(layer) for layer in narrower.layers]
    assert sizes == [pruned_mlp_size(spec, layer, size) for layer in spec.layers]
    assert narrower.mlp_size(msgspec.structs.replace(narrower.layers[0], intermediate_size=None))
    if size == spec.intermediate_size:
        assert narrower == spec
