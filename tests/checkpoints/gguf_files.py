"""Write tiny models as GGUF files the way llama.cpp's converter does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

KINDS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
    "Q5_0": gguf.GGMLQuantizationType.Q5_0,
}
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
) -> Path:
    """Write a Hugging Face model, with more metadata and more tensors if asked.

    `arrays` replace metadata; `without` are ends of keys that are left out.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_feed_forward(writer, model)
    _add_key_value_heads(writer, config)
    _add_rope(writer, config)
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
    for key, integer in (integers or {}).items():
        writer.add_uint32(key, integer)
    _add_tokenizer(writer, config, tokenizer)
    _replace(writer, arrays or {}, without)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _as_llama_cpp(name, tensor.float().numpy(), config)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        _add(writer, stored, values, KINDS[kind])
    for name, extra in (tensors or {}).items():
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


def _add_feed_forward(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    size = config.intermediate_size
    if config.model_type == "lfm2":  # rounded there
        size = model.model.layers[0].feed_forward.w1.out_features
        writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_feed_forward_length(size)
    writer.add_layer_norm_rms_eps(getattr(config, "norm_eps", None) or config.rms_norm_eps)


def _add_key_value_heads(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_key_value_heads
    if config.model_type == "lfm2":
        heads = [0 if kind == "conv" else heads for kind in config.layer_types]
    writer.add_head_count_kv(heads)


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    theta, dim = rope.get("rope_theta"), config.head_dim
    if config.model_type == "hunyuan_v1_dense":
        theta *= rope["alpha"] ** (dim / (dim - 2))
    writer.add_rope_dimension_count(int(dim * (rope.get("partial_rotary_factor") or 1)))
    if theta:
        writer.add_rope_freq_base(theta)
    if config.model_type in ("olmo3", "ministral3"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def _add_scales(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _as_llama_cpp(name: str, values: npt.NDArray[Any], config: Any) -> npt.NDArray[Any]:
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }
    part = name.split(".")[-2]
    if part == "conv":
        return values.squeeze(1) if values.ndim == 3 else values
    if config.model_type in _PERMUTED and part in heads:
        # LlamaModel.permute of convert_hf_to_gguf.py: the halves of a head are interleaved.
        count = heads[part]
        split = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)
    if config.model_type.startswith("gemma") and part.endswith("norm"):
        return values + 1
    return values


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    values: npt.NDArray[Any],
    kind: gguf.GGMLQuantizationType,
) -> None:
    if values.ndim == 1 or "shortconv.conv" in name:  # as llama.cpp keeps norms and biases
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
