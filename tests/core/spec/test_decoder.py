"""What follows from a spec: counts and costs, worked by hand and compared with Hugging Face."""

from typing import Any

import pytest

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.tensor_shapes import tensor_shapes
from tests.checkpoints.models import TINY
from tests.conftest import TinyFactory

# Small enough to count by hand: 2 layers, hidden 8, 4 heads of 2, 2 kv heads, ffn 16, vocab 32.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}
# per layer: q 8x8, k 4x8, v 4x8, o 8x8; gate 16x8, up 16x8, down 8x16
LINEAR = 2 * (64 + 32 + 32 + 64 + 3 * 128)
EMBEDDING = 32 * 8
VECTORS = 2 * (8 + 8) + 8


def spec_of(**over: Any) -> DecoderSpec:
    return DecoderSpec.from_hf(CONFIG | over)


@pytest.mark.parametrize("name", sorted(TINY))
def test_parameters_are_hugging_faces(tiny: TinyFactory, name: str) -> None:
    source = tiny(name)
    assert source.checkpoint.spec.parameters == source.hf.num_parameters()


@pytest.mark.parametrize("name", sorted(TINY))
def test_tensor_shapes_are_hugging_faces(tiny: TinyFactory, name: str) -> None:
    source = tiny(name)
    tied = {"lm_head.weight"} if source.checkpoint.spec.tie_word_embeddings else set()
    expected = {
        key: tuple(value.shape)
        for key, value in source.hf.state_dict().items()  # parameters, and constants of xIELU
        if key not in tied
    }
    assert tensor_shapes(source.checkpoint.spec) == expected


def test_parameters_by_hand() -> None:
    spec = spec_of()
    assert spec.linear_parameters == LINEAR == 1152
    assert spec.embedding_parameters == EMBEDDING == 256
    assert spec.vector_parameters == VECTORS == 40
    assert spec.parameters == 1152 + 2 * 256 + 40
    assert spec_of(tie_word_embeddings=True).parameters == 1152 + 256 + 40


def test_weight_bytes_by_hand() -> None:
    tied = spec_of(tie_word_embeddings=True)
    assert tied.weight_bytes(4) == (1152 + 256) // 2 + 40 * 4
    assert tied.weight_bytes(4.5) == 1408 * 4.5 / 8 + 160
    assert tied.weight_bytes(4, head_bits=8) == 1152 // 2 + 256 + 160
    assert spec_of().weight_bytes(32) == (1152 + 2 * 256 + 40) * 4


def test_kv_bytes_by_hand() -> None:
    # key and value, 2 layers, 2 heads of 2
    assert spec_of().kv_bytes_per_token(1.0) == 2 * 2 * 4
    assert spec_of().kv_bytes_per_token(4.0) == 2 * 2 * 4 * 4


def test_flops_by_hand() -> None:
    spec = spec_of()
    matmuls = 2 * (1152 + 256)
    # One query of 8 against every key, and as much again for the values.
    assert spec.flops_per_token(0) == matmuls + 2 * (4 * 8 * 1)
    assert spec.flops_per_token(9) == matmuls + 2 * (4 * 8 * 10)


def test_flops_stop_growing_at_the_window() -> None:
    spec = spec_of(model_type="mistral", sliding_window=4)
    assert spec.flops_per_token(2) < spec.flops_per_token(3) == spec.flops_per_token(50)


def test_unknown_family_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="unknown architecture 'gptx'") as caught:
        spec_of(model_type="gptx")
    for family in FAMILIES:
        assert family in str(caught.value)


def test_config_without_a_family() -> None:
    with pytest.raises(UnknownName, match="unknown architecture None"):
        DecoderSpec.from_hf({})


@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "None"), (0, "0"), (-1, "-1"), ("8", "'8'"), (2.5, r"2\.5"), (True, "True")],
    ids=["missing", "zero", "negative", "text", "fraction", "flag"],
)
def test_size_must_be_a_positive_integer(field: str, value: Any, shown: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"{field} is {shown}, expected a positive integer"):
        spec_of(**{field: value})


def test_heads_must_share_keys_evenly() -> None:
    with pytest.raises(BadCheckpoint, match=r"num_attention_heads 4 is not a multiple of .* 3"):
        spec_of(num_key_value_heads=3)


@pytest.mark.parametrize("field", ["layer_types", "no_rope_layers"])
def test_a_list_of_layers_has_one_entry_each(field: str) -> None:
    with pytest.raises(
        BadCheckpoint, match=f"{field} has 3 entries, expected one for each of 2 layers"
    ):
        spec_of(**{field: ["full_attention"] * 3})


@pytest.mark.parametrize("name", ["mish", "xielu"])  # xIELU is for an MLP without a gate
def test_unknown_activation(name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown activation '{name}' in .*; known: silu, swish"):
        spec_of(hidden_act=name)


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({}, 2),
        ({"head_dim": 6}, 6),
        ({"head_dim": None}, 2),
        ({"model_type": "qwen3"}, 128),
        ({"model_type": "gemma2"}, 256),
    ],
    ids=["derived", "written", "null", "qwen3", "gemma2"],
)
def test_head_dim(over: dict[str, Any], expected: int) -> None:
    assert spec_of(**over).head_dim == expected


def test_kv_heads_default_to_the_query_heads() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    assert DecoderSpec.from_hf(config).num_key_value_heads == 4
