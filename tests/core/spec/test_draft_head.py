"""The draft head of a decoder, as a decoder of its own."""

import math

import pytest

from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.draft_head import draft_head_spec, hidden_rows
from edgelm.spec.groups import FUSION, groups, matrix_shape
from edgelm.spec.tensor_shapes import tensor_shapes
from tests.checkpoints.models import tiny_config


def spec(name: str) -> DecoderSpec:
    return DecoderSpec.from_hf(tiny_config(name).to_dict())


@pytest.mark.parametrize("name", ["qwen3.5", "llama"])
def test_it_is_one_layer_with_attention_and_a_fusion(name: str) -> None:
    model = spec(name)
    head = draft_head_spec(model)
    assert head.layers == (model.layers[model.attention_layers[-1]],)
    assert head.states == ()
    assert matrix_shape(head, FUSION) == (model.hidden_size, 2 * model.hidden_size)
    assert groups(head).index(FUSION) < groups(head).index("layers.0.attention.qkv")
    shapes = tensor_shapes(head)
    assert head.parameters == sum(math.prod(shape) for shape in shapes.values())
    assert FUSION not in groups(model)


@pytest.mark.parametrize("name", ["qwen3-moe", "gemma4", "nemotron-h"])
def test_models_that_can_have_none(name: str) -> None:
    with pytest.raises(BadInput, match="export it without the draft head"):
        draft_head_spec(spec(name))


def test_hidden_states_take_a_bounded_memory() -> None:
    assert hidden_rows(64) == 2048
    assert 4 * 5120 * hidden_rows(5120) <= 8 << 20
    assert hidden_rows(1 << 20) == 64
