"""Write tiny models as GGUF files the way llama.cpp's converter does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.checkpoints.gguf_layout.keys import (
    add_keys,
    feed_forward_length,
    global_config,
    key_value_heads,
)
from tests.checkpoints.gguf_layout.tensors import converted, permuted, rope_factors, stacks

KINDS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q5_0": gguf.GGMLQuantizationType.Q5_0,
    "MXFP4": gguf.GGMLQuantizationType.MXFP4,
}
# What llama.cpp keeps in fp32 besides vectors.
_FP32 = ("shortconv.conv", "ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "ffn_gate_inp", "_exps.bias")
_SMALL = ("altup_correct", "altup_predict", "altup_router")
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "arcee": gguf.MODEL_ARCH.ARCEE,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "lfm2": gguf.MODEL_ARCH.LFM2,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "lfm2_moe": gguf.MODEL_ARCH.LFM2MOE,
    "qwen3_5_text": gguf.MODEL_ARCH.QWEN35,
    "qwen3_5_moe_text": gguf.MODEL_ARCH.QWEN35MOE,
    "granitemoe": gguf.MODEL_ARCH.GRANITE_MOE,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE_HYBRID,
    "nemotron_h": gguf.MODEL_ARCH.NEMOTRON_H,
    "falcon_h1": gguf.MODEL_ARCH.FALCON_H1,
    "gemma3n_text": gguf.MODEL_ARCH.GEMMA3N,
    "gemma4_text": gguf.MODEL_ARCH.GEMMA4,
    "apertus": gguf.MODEL_ARCH.APERTUS,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
    "cohere2": gguf.MODEL_ARCH.COHERE2,
    "phi": gguf.MODEL_ARCH.PHI2,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
}
_LAYER_NORMS = {
    "nemotron_h": "layer_norm_epsilon",
    "starcoder2": "norm_epsilon",
    "stablelm": "layer_norm_eps",
    **dict.fromkeys(("cohere", "cohere2", "phi", "gpt_neox"), "layer_norm_eps"),
}
_PERMUTED = ("llama", "smollm3", "granite", "arcee", "ministral3")


def write_gguf(
    model: Any,
    path: Path,
    kind: str = "F32",
    *,
    tokenizer: Any = None,
    metadata: Mapping[str, str | float] | None = None,
    integers: Mapping[str, int] | None = None,
    arrays: Mapping[str, list[int]] | None = None,
    without: tuple[str, ...] = (),
    tensors: Mapping[str, npt.NDArray[np.float32]] | None = None,
    without_tensors: tuple[str, ...] = (),
) -> Path:
    """Write a Hugging Face model, with more metadata and more tensors if asked.

    `arrays` replace metadata; `without` are ends of keys that are left out, and `without_tensors`
    parts of the names of tensors.
    """
    config = global_config(model.config)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    head_dim = _head_dim(config)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_feed_forward(writer, model, config)
    writer.add_head_count_kv(key_value_heads(config))
    _add_rope(writer, config)
    add_keys(writer, model)
    _add_scales(writer, config)
    if config.model_type in ("olmo3", "exaone4"):
        writer.add_sliding_window(config.sliding_window)
        kinds = config.layer_types
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_float32(key, value)
    _add_tokenizer(writer, config, tokenizer)
    _replace(writer, arrays or {}, without)
    for key, integer in (integers or {}).items():
        writer.add_uint32(key, integer)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    for name, values in stacks(state, config).items():
        stored = names.get_name(f"model.{name}", try_suffixes=(".weight",))
        assert stored, name
        _add(writer, stored, values, KINDS[kind])
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for found, values in _as_llama_cpp(name, tensor, config).items():
            stored = names.get_name(found, try_suffixes=(".weight", ".bias")) or found
            assert "layers" not in stored, stored
            if not any(part in stored for part in without_tensors):
                _add(writer, stored, values, KINDS[kind])
    for name, extra in {**rope_factors(config), **(tensors or {})}.items():
        if name in (tensors or {}) or not any(part in name for part in without_tensors):
            writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _replace(
    writer: gguf.GGUFWriter, arrays: Mapping[str, list[int]], without: tuple[str, ...]
) -> None:
    keys = writer.kv_data[0]
    for key in list(keys):
        if key in arrays or key.endswith(without):
            del keys[key]
    for key, values in arrays.items():
        writer.add_array(key, values)


def _add_feed_forward(writer: gguf.GGUFWriter, model: Any, config: Any) -> None:
    size = feed_forward_length(config)
    if config.model_type == "lfm2":  # rounded there
        size = model.model.layers[0].feed_forward.w1.out_features
        writer.add_shortconv_l_cache(config.conv_L_cache)
    if size is not None:
        writer.add_feed_forward_length(size)
    if config.model_type in _LAYER_NORMS:
        writer.add_layer_norm_eps(getattr(config, _LAYER_NORMS[config.model_type]))
    else:
        writer.add_layer_norm_rms_eps(getattr(config, "norm_eps", None) or config.rms_norm_eps)


def _head_dim(config: Any) -> int:
    dim: int | None = getattr(config, "head_dim", None)
    return dim or config.hidden_size // config.num_attention_heads


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    theta, dim = rope.get("rope_theta"), _head_dim(config)
    if config.model_type == "hunyuan_v1_dense":
        theta *= rope["alpha"] ** (dim / (dim - 2))
    writer.add_rope_dimension_count(int(dim * (rope.get("partial_rotary_factor") or 1)))
    if theta:
        writer.add_rope_freq_base(theta)
    if config.model_type in ("olmo3", "ministral3", "gpt_oss"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def _add_scales(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.model_type.startswith("granite"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _as_llama_cpp(name: str, values: npt.NDArray[Any], config: Any) -> dict[str, npt.NDArray[Any]]:
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": getattr(config, "num_key_value_heads", None),
    }
    part = name.split(".")[-2]
    if part == "conv" and config.model_type == "lfm2":
        return {name: values.squeeze(1) if values.ndim == 3 else values}
    if config.model_type in _PERMUTED and part in heads:
        return {name: permuted(values, heads[part])}
    gemma = config.model_type in ("gemma", "gemma2", "gemma3_text")
    if gemma and part.endswith("norm"):
        return {name: values + 1}
    return converted(name, values, config)


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    values: npt.NDArray[Any],
    kind: gguf.GGMLQuantizationType,
) -> None:
    values = np.ascontiguousarray(values, np.float32)
    if values.ndim == 1 or any(part in name for part in (*_FP32, *_SMALL)):
        kind = gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_tokenizer(writer: gguf.GGUFWriter, config: Any, tokenizer: Any) -> None:
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    if tokenizer is None:
        return
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = tokenizer.get_added_tokens_decoder()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([control if index in special else normal for _, index in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
