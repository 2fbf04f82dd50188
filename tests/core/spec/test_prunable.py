"""Which sizes and layers pruning can change, of every family."""

import msgspec
import pytest

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import (
    derives_mamba,
    fixed_sizes,
    following_mamba_heads,
    lasting_layers,
    pruned_mlp_size,
    with_intermediate_size,
)
from tests.checkpoints.models import DENSE, tiny_config

FIXED = {
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


@pytest.mark.parametrize(
    ("name", "over", "heads"),
    [
        # 8 heads of 16 in 2 groups, twice as wide as 64
        ("granite-hybrid", {}, {64: 8, 48: 6, 32: 4, 16: 2, 40: None, 44: None, 8: None}),
        ("granite-hybrid", {"mamba_n_groups": 1}, {40: 5, 8: 1, 44: None, 4: None}),
        ("granite-hybrid", {"layer_types": ["full_attention"] * 6}, {64: None, 48: None}),
        ("nemotron-h", {}, {64: 8, 44: 8}),
        ("falcon-h1", {}, {64: 8, 44: 8}),
        ("lfm2", {}, {64: None, 48: None}),
    ],
)
def test_heads_of_mamba_that_follow_the_hidden_size(
    name: str, over: dict[str, object], heads: dict[int, int | None]
) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name, **over).to_dict())
    assert {size: following_mamba_heads(spec, size) for size in heads} == heads
    assert derives_mamba(spec) == (name == "granite-hybrid" and "layer_types" not in over)


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
