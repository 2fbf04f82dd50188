"""A decoder with fewer layers keeps one that attends."""

import msgspec
import pytest

from edgelm.devices.planner.models.smaller_models import smaller_models
from edgelm.devices.planner.plan import predict
from edgelm.devices.profile import load_profile
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth
from edgelm.spec.prunable import lasting_layers
from tests.checkpoints.models import tiny_config, tiny_model


def hybrid() -> DecoderSpec:
    """Three layers with a recurrent state before each one with attention."""
    spec = DecoderSpec.from_hf(tiny_model("qwen3.5").config.to_dict())
    attending = next(layer for layer in spec.layers if layer.attends)
    other = next(layer for layer in spec.layers if not layer.attends)
    layers = (other, other, other, attending) * (len(spec.layers) // 4)
    return msgspec.structs.replace(spec, num_hidden_layers=len(layers), layers=layers)


def test_the_first_layers() -> None:
    spec = DecoderSpec.from_hf(tiny_model("llama").config.to_dict())
    assert with_depth(spec, 2).layers == spec.layers[:2]
    assert with_depth(spec, 2).num_hidden_layers == 2
    assert with_depth(spec, spec.num_hidden_layers) == spec


def test_every_depth_of_a_hybrid_can_be_planned() -> None:
    spec, profile = hybrid(), load_profile("cpu")
    for count in range(1, spec.num_hidden_layers + 1):
        shallow = with_depth(spec, count)
        assert len(shallow.layers) == shallow.num_hidden_layers == count
        assert shallow.attention_layers
        assert predict(shallow, profile, PlanRequest(prompt=16, kv="int8")).fits


def test_smaller_versions_of_a_hybrid_that_is_too_slow() -> None:
    request = PlanRequest(prompt=16, kv="int8", min_tokens_per_second=1e9)
    assert smaller_models(hybrid(), load_profile("cpu"), request) == []
    enough = msgspec.structs.replace(request, min_tokens_per_second=1.0)
    assert smaller_models(hybrid(), load_profile("cpu"), enough)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_layers_that_share_keep_their_sources(name: str) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name).to_dict())
    assert with_depth(spec, spec.num_hidden_layers) == spec
    before = 0
    for count in range(len(lasting_layers(spec)), spec.num_hidden_layers + 1):
        shallow = with_depth(spec, count)
        assert len(shallow.layers) == shallow.num_hidden_layers == count
        for index, layer in enumerate(shallow.layers):
            if (source := layer.shares_kv_of) is not None:
                assert source < index
                assert shallow.layers[source].has_cache
                assert shallow.layers[source].window == layer.window
        assert shallow.parameters > before, "a layer costs something"
        before = shallow.parameters


def test_the_layers_between_are_at_equal_distances() -> None:
    spec = DecoderSpec.from_hf(tiny_config("gemma4").to_dict())
    # Layers 1, 2 and 6 stay; of 0, 3, 4 and 5, the first and the third.
    shallow = with_depth(spec, 5)
    assert [layer.window for layer in shallow.layers] == [8, 8, None, 8, None]
    assert [layer.shares_kv_of for layer in shallow.layers] == [None, None, None, 1, 2]
