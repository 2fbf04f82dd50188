"""Keys of metadata as llama.cpp's converter writes them for hybrids and mixtures of experts."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gguf
import torch


def global_config(config: Any) -> Any:
    """A configuration whose sizes can be read although layers differ (Gemma 4)."""
    if config.model_type != "gemma4_text":
        return config
    values = config.to_dict()
    own = next(iter(values["per_layer_config"].values()))
    return SimpleNamespace(**values, global_head_dim=own["head_dim"])


def key_value_heads(config: Any) -> int | list[int]:
    """Their number, or one for each layer of a hybrid."""
    heads: int = getattr(config, "num_key_value_heads", config.num_attention_heads)
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", [])
    if config.model_type in ("lfm2", "lfm2_moe", "granitemoehybrid", "nemotron_h"):
        return [heads if kind == "full_attention" else 0 for kind in kinds]
    if config.model_type == "gemma4_text":
        own = getattr(config, "per_layer_config", None) or {}
        layers = range(config.num_hidden_layers)
        return [own.get(str(layer), {}).get("num_key_value_heads", heads) for layer in layers]
    return heads


def feed_forward_length(config: Any) -> int | list[int] | None:
    """The size of MLPs, or one for each layer."""
    size: int | None = getattr(config, "intermediate_size", None)
    if config.model_type == "nemotron_h":
        return [size or 0 if kind == "mlp" else 0 for kind in config.layers_block_type]
    if config.model_type == "gemma4_text" and config.use_double_wide_mlp:
        own = config.num_hidden_layers - config.num_kv_shared_layers
        return [config.intermediate_size] * own + [
            2 * config.intermediate_size
        ] * config.num_kv_shared_layers
    if config.model_type == "granitemoehybrid" and not config.num_local_experts:
        return config.shared_intermediate_size  # type: ignore[no-any-return]
    return size


def add_keys(writer: gguf.GGUFWriter, model: Any) -> None:
    """What files of the model's architecture have besides the sizes of all."""
    if (add := _WRITERS.get(model.config.model_type)) is not None:
        add(writer, model)


def _experts(writer: gguf.GGUFWriter, config: Any, size: int | None = None) -> None:
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if size is not None:
        writer.add_expert_feed_forward_length(size)


def _qwen3_moe(writer: gguf.GGUFWriter, model: Any) -> None:
    _experts(writer, model.config, model.config.moe_intermediate_size)


def _olmoe(writer: gguf.GGUFWriter, model: Any) -> None:
    _experts(writer, model.config)


def _gpt_oss(writer: gguf.GGUFWriter, model: Any) -> None:
    writer.add_sliding_window(model.config.sliding_window)
    _experts(writer, model.config, model.config.intermediate_size)


def _lfm2_moe(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    _experts(writer, config, config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.num_dense_layers)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _qwen3_5(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    recurrent = [kind == "linear_attention" for kind in config.layer_types]
    writer.add_array("qwen35.attention.recurrent_layers", recurrent)
    writer.add_full_attention_interval(4)
    writer.add_rope_dimension_sections([11, 11, 10, 0])


def _qwen3_5_moe(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    _qwen3_5(writer, model)
    recurrent = writer.kv_data[0].pop("qwen35.attention.recurrent_layers")
    writer.kv_data[0]["qwen35moe.attention.recurrent_layers"] = recurrent
    _experts(writer, config, config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _mamba2(writer: gguf.GGUFWriter, sizes: tuple[int, int, int, int, int]) -> None:
    kernel, state, groups, heads, inner = sizes
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(inner)


def _granite_moe(writer: gguf.GGUFWriter, model: Any) -> None:
    if model.config.num_local_experts:
        _experts(writer, model.config)


def _granite_hybrid(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    inner = config.mamba_expand * config.hidden_size
    sizes = (config.mamba_d_state, config.mamba_n_groups, config.mamba_n_heads, inner)
    _mamba2(writer, (config.mamba_d_conv, *sizes))
    writer.add_rope_scaling_finetuned(False)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    _granite_moe(writer, model)


def _nemotron_h(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    inner = config.mamba_num_heads * config.mamba_head_dim
    sizes = (config.ssm_state_size, config.n_groups, config.mamba_num_heads, inner)
    _mamba2(writer, (config.conv_kernel, *sizes))


def _falcon_h1(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    inner = config.mamba_d_ssm or config.mamba_expand * config.hidden_size
    sizes = (config.mamba_d_state, config.mamba_n_groups, config.mamba_n_heads, inner)
    _mamba2(writer, (config.mamba_d_conv, *sizes))


def _gemma3n(writer: gguf.GGUFWriter, model: Any) -> None:
    config = model.config
    writer.add_sliding_window(config.sliding_window)
    kinds = config.layer_types
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    shares = torch.tensor(config.activation_sparsity_pattern)
    quantiles = torch.distributions.normal.Normal(0, 1).icdf(shares)
    writer.add_activation_sparsity_scale(quantiles.tolist())
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma4(writer: gguf.GGUFWriter, model: Any) -> None:
    config = global_config(model.config)
    dim = config.global_head_dim
    for name in ("key_length", "value_length", "rope.dimension_count"):
        prefix = "gemma4." if name.startswith("rope") else "gemma4.attention."
        writer.kv_data[0].pop(f"{prefix}{name}", None)
        writer.add_uint32(f"{prefix}{name}", dim)
        writer.add_uint32(f"{prefix}{name}_swa", config.head_dim)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_sliding_window(config.sliding_window)
    kinds = config.layer_types
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _stablelm(writer: gguf.GGUFWriter, model: Any) -> None:
    writer.add_parallel_residual(model.config.use_parallel_residual)


def _cohere(writer: gguf.GGUFWriter, model: Any) -> None:
    writer.add_logit_scale(model.config.logit_scale)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if model.config.model_type == "cohere2":
        writer.add_sliding_window(model.config.sliding_window)


def _apertus(writer: gguf.GGUFWriter, model: Any) -> None:
    shapes = [layer.mlp.act_fn for layer in model.model.layers]
    writer.add_xielu_alpha_p([shape.alpha_p.item() for shape in shapes])
    writer.add_xielu_alpha_n([shape.alpha_n.item() for shape in shapes])
    writer.add_xielu_beta([shape.beta.item() for shape in shapes])
    writer.add_xielu_eps([shape.eps.item() for shape in shapes])


_WRITERS: dict[str, Callable[[gguf.GGUFWriter, Any], None]] = {
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
    "lfm2_moe": _lfm2_moe,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5_moe,
    "granitemoe": _granite_moe,
    "granitemoehybrid": _granite_hybrid,
    "nemotron_h": _nemotron_h,
    "falcon_h1": _falcon_h1,
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "apertus": _apertus,
    "stablelm": _stablelm,
    "gpt_neox": _stablelm,
    "cohere": _cohere,
    "cohere2": _cohere,
}
