"""Mixtures of experts, as the classes of transformers read them."""

import json
from typing import Any

import pytest

from edgelm.devices.kernels import check_shape
from edgelm.devices.planner.cost_model.work import work_of
from edgelm.devices.published.models import model_named
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.experts import MixtureOfExperts
from tests.checkpoints.models import tiny_config

# As published, without the fields that no reader of shapes needs.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Of the plan's work what the table of published models says of the same model."""
    spec = DecoderSpec.from_hf(PUBLISHED[name])
    known = model_named(name)
    assert known is not None
    ours, theirs = (
        work_of(spec, linear_bits=4.5, head_bits=4.5),
        known.work(4.5, 4.5),
    )
    assert spec.parameters == pytest.approx(known.parameters, rel=1e-3)
    assert ours.linear_parameters == pytest.approx(theirs.linear_parameters, rel=0.01)
    assert ours.resident_bytes == pytest.approx(theirs.resident_bytes, rel=0.01)
    assert ours.expert_bytes == pytest.approx(theirs.expert_bytes, rel=0.02)
    assert (ours.active_experts, ours.experts) == (theirs.active_experts, theirs.experts)
    matrices = 2 * (spec.active_parameters + spec.embedding_parameters)
    assert spec.flops_per_token() == pytest.approx(matrices, rel=0.01)


def config(name: str, **over: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(tiny_config(name).to_json_string())
    return values | over


def sparse(**over: Any) -> list[bool]:
    spec = DecoderSpec.from_hf(config("qwen3-moe", **over))
    return [layer.mlp is not None for layer in spec.layers]


def test_which_layers_have_experts() -> None:
    assert sparse(mlp_only_layers=[1]) == [True, False, True, True]
    assert sparse(mlp_only_layers=None) == [True] * 4
    assert sparse(mlp_only_layers=[], decoder_sparse_step=2) == [False, True, False, True]
    assert sparse(mlp_only_layers=[], num_local_experts=0) == [False] * 4
    lfm2 = DecoderSpec.from_hf(config("lfm2-moe", num_dense_layers=3))
    assert [layer.mlp is None for layer in lfm2.layers] == [True, True, True, False]


def test_what_gpt_oss_computes() -> None:
    spec = DecoderSpec.from_hf(PUBLISHED["gpt-oss-20b"])
    assert spec.layers[0].mlp == MixtureOfExperts(
        32,
        4,
        2880,
        normalized=True,
        router_bias=True,
        biases=True,
        alpha=1.702,
        beta=1.0,
        limit=7.0,
    )
    assert [layer.window for layer in spec.layers[:3]] == [128, None, 128]
    assert spec.attention_sinks
    assert spec.qkv_bias
    assert spec.o_bias


@pytest.mark.parametrize(
    ("name", "over", "message"),
    [
        ("qwen3-moe", {"num_experts_per_tok": 7}, "is 7, expected at most the number of experts"),
        ("qwen3-moe", {"num_experts_per_tok": 0}, "num_experts_per_tok is 0, expected a positive"),
        ("qwen3-moe", {"num_local_experts": "6"}, "num_local_experts is '6', expected an integer"),
        (
            "qwen3-moe",
            {"num_local_experts": 10**6},
            "an integer of at least 0 up to 4,096",
        ),
        ("qwen3-moe", {"mlp_only_layers": ["a"]}, "mlp_only_layers is .*, expected a list of"),
        ("qwen3-moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0, expected a positive"),
        ("qwen3-moe", {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu"),
        ("qwen3-moe", {"norm_topk_prob": 1}, "norm_topk_prob is 1, expected true or false"),
        ("gpt-oss", {"swiglu_limit": -1}, "swiglu_limit is -1, expected a number above 0"),
        ("lfm2-moe", {"routed_scaling_factor": 0}, "routed_scaling_factor is 0, expected"),
        ("lfm2-moe", {"num_dense_layers": -1}, "num_dense_layers is -1, expected"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0: clipped queries, keys and values are not"),
    ],
)
def test_fields_that_do_not_fit(name: str, over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(config(name, **over))


@pytest.mark.parametrize("engine", ["tensorrt-10.3", "tensorrt-10.16", "tensorrt-rtx-1.7"])
def test_tensorrt_refuses_mixtures(engine: str) -> None:
    spec = DecoderSpec.from_hf(PUBLISHED["Qwen3-30B-A3B"])
    with pytest.raises(BadInput, match=rf"{engine} cannot run this qwen3_moe: TensorRT has no op"):
        check_shape(spec, engine)
    check_shape(spec, "onnxruntime")
    check_shape(spec, "onnxruntime-cuda")
