"""Fields of config.json with values that no model has: an error that names the field."""

import json
import random
import time
from typing import Any

import pytest

from edgelm.errors import BadCheckpoint, EdgeLMError, UnknownName
from edgelm.spec.config.config_fields import MAX_LAYERS
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import TINY, tiny_config

_WILD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**9, 10**30, 10**400, -(2**70)),
    *(0.0, 0.5, -0.5, 1e-320, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "a" * 10_000, "8", "no", "linear", "sliding_attention", "\ud800"),
    *([], [1], ["full_attention"], [None] * 5, [[]], {}, {"a": 1}, {"type": "x"}),
    *({"rope_type": "yarn"}, {"rope_type": ["yarn"]}, {"full_attention": 1}),
    *({"type": "linear", "factor": "2"}, {"rope_type": "linear", "factor": float("nan")}),
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": ["x"] * 8},
)
_FIELDS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"),
    *("partial_rotary_factor", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    *("hidden_act", "hidden_activation", "sliding_window", "use_sliding_window", "layer_types"),
    *("max_window_layers", "sliding_window_pattern", "no_rope_layers", "no_rope_layer_interval"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling"),
    *("original_max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("is_causal", "use_bidirectional_attention", "per_layer_config", "is_encoder_decoder"),
)
CONFIGS: dict[str, dict[str, Any]] = {
    name: json.loads(tiny_config(name).to_json_string()) for name in TINY
}


def config_of(name: str, **over: Any) -> dict[str, Any]:
    return CONFIGS[name] | over


def read_or_refused(config: dict[str, Any]) -> None:
    try:
        spec = DecoderSpec.from_hf(config)
    except EdgeLMError as error:
        spec, message = None, str(error)
    if spec is None:
        assert 0 < len(message) < 1000
        return
    assert spec.num_hidden_layers == len(spec.layers) <= MAX_LAYERS
    assert 0 < spec.parameters < 2**80
    assert spec.attention_scale > 0


@pytest.mark.parametrize("field", _FIELDS)
def test_any_value_of_a_field(field: str) -> None:
    for name in ("llama", "qwen2-window", "smollm3", "granite", "phi3-partial", "gemma3"):
        for value in _WILD:
            read_or_refused(config_of(name, **{field: value}))


def test_pairs_of_fields() -> None:
    rng = random.Random(3)
    for _ in range(600):
        config = dict(rng.choice(list(CONFIGS.values())))
        for field in rng.sample(_FIELDS, rng.choice((2, 3))):
            config[field] = rng.choice(_WILD)
        read_or_refused(config)


@pytest.mark.parametrize("count", [MAX_LAYERS + 1, 10**9, 2**63])
def test_too_many_layers_are_refused_before_any_is_built(count: int) -> None:
    started = time.process_time()
    with pytest.raises(BadCheckpoint, match=r"num_hidden_layers is .*up to 4,096"):
        DecoderSpec.from_hf(config_of("llama", num_hidden_layers=count))
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("name", "over", "message"),
    [
        ("llama", {"rms_norm_eps": "a"}, "rms_norm_eps is 'a', expected a number"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number"),
        ("llama", {"head_dim": "x"}, "head_dim is 'x', expected a positive integer"),
        ("llama", {"head_dim": 15}, "head_dim is 15, expected an even number"),
        ("llama", {"tie_word_embeddings": "no"}, "is 'no', expected true or false"),
        ("llama", {"attention_bias": None}, "attention_bias is None, expected true or false"),
        ("llama", {"rope_scaling": True}, "rope_scaling is True, expected an object"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is None, expected"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0, expected a number ab"),
        ("llama", {"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ("llama", {"num_labels": 10**9}, "num_labels is 1000000000, expected an int"),
        ("llama", {"eos_token_id": "x"}, "eos_token_id is 'x', expected a token's id"),
        ("llama", {"bos_token_id": [1]}, r"bos_token_id is \[1\], expected a token's id"),
        ("llama", {"is_causal": False}, "is_causal is False: models that see later tokens"),
        ("gemma3", {"use_bidirectional_attention": True}, "models that see later tokens"),
        ("llama", {"per_layer_config": {"0": {}}}, "layers that differ in their sizes"),
        ("gemma4", {"per_layer_config": {"x": {}}}, "has the name 'x', expected the number of a"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0, expected a positive integer"),
        ("mistral", {"sliding_window": -8}, "sliding_window is -8, expected a positive integer"),
        ("mistral", {"layer_types": ["mamba"] * 4}, "layer_types has the kind 'mamba', expected"),
        ("mistral", {"layer_types": "full"}, "layer_types is 'full', expected a list with one"),
        ("gemma2", {"sliding_window": None}, "2 layers have sliding_attention, and sliding_window"),
        ("gemma2", {"hidden_activation": None}, "unknown activation None"),
        ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "parameters for full_attention and"),
        ("smollm3", {"no_rope_layers": [2, 0, 0, 0]}, "no_rope_layers is .*a list of 0 and 1"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0, expected a number above 0"),
    ],
)
def test_the_field_is_named(name: str, over: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeLMError, match=message):
        DecoderSpec.from_hf(config_of(name, **over))


def test_windows_that_are_switched_off_but_asked_for() -> None:
    config = config_of("qwen2", layer_types=["sliding_attention"] * 4, sliding_window=8)
    with pytest.raises(BadCheckpoint, match="disabled by use_sliding_window"):
        DecoderSpec.from_hf(config)


def test_a_scaling_that_the_class_does_not_take() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(UnknownName, match=r"unknown RoPE scaling 'linear' .*default, longrope"):
        DecoderSpec.from_hf(config_of("phi3", rope_parameters=linear))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"factor": None}, "factor is None"),
        ({"low_freq_factor": 4.0}, "high_freq_factor is 4.0, expected a number above low_freq"),
        ({"original_max_position_embeddings": "x"}, "original_max_position_embeddings is 'x'"),
    ],
)
def test_llama3_parameters(over: dict[str, Any], message: str) -> None:
    parameters = CONFIGS["llama3-rope"]["rope_parameters"] | over
    with pytest.raises(BadCheckpoint, match=message):
        DecoderSpec.from_hf(config_of("llama3-rope", rope_parameters=parameters))


@pytest.mark.parametrize("name", ["stablelm", "llama"])
def test_norms_of_single_heads_are_not_supported(name: str) -> None:
    with pytest.raises(BadCheckpoint, match=r"qk_layernorm is True: .*StableLM 2 12B"):
        DecoderSpec.from_hf(config_of(name, qk_layernorm=True))


def test_command_r_plus_is_not_supported() -> None:
    with pytest.raises(BadCheckpoint, match=r"use_qk_norm is True: .*Command R\+"):
        DecoderSpec.from_hf(config_of("cohere", use_qk_norm=True))
    DecoderSpec.from_hf(config_of("hunyuan", use_qk_norm=True))  # another field of that name


def test_scaling_of_a_single_pair_of_channels_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match=r"alpha is 9.0, expected none: .* more than 2 rotated"):
        DecoderSpec.from_hf(config_of("hunyuan", head_dim=2))
