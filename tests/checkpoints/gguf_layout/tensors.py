"""Tensors as llama.cpp's converter writes them (conversion/*.py), under the names that it maps."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


def converted(name: str, values: Array, config: Any) -> Tensors:
    """What becomes of one tensor of a model."""
    convert = _CONVERTERS.get(config.model_type, _plain)
    return convert(name, values, config)


def permuted(values: Array, heads: int) -> Array:
    """LlamaModel.permute: the halves of a head are interleaved."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def rope_factors(config: Any) -> Tensors:
    """LlamaModel.generate_extra_tensors, of models that have this scaling by default."""
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma4_text":
        half = config.global_head_dim // 2
        factors = np.full(half, 1e30, np.float32)
        factors[: int(half * rope["full_attention"]["partial_rotary_factor"])] = 1
        return {"rope_freqs.weight": factors}
    if config.model_type != "apertus" or rope["rope_type"] != "llama3":
        return {}
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / waves - low) / (high - low)
    factors = 1 / ((1 - smooth.clip(0, 1)) / rope["factor"] + smooth.clip(0, 1))
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _plain(name: str, values: Array, config: Any) -> Tensors:
    return {name: values}


def _experts(name: str, values: Array, config: Any) -> Tensors:
    """Qwen2MoeModel: gate and up apart."""
    if name.endswith("experts.down_proj"):
        return {f"{name}.weight": values}
    if name.endswith("experts.gate_up_proj"):
        base, half = name.removesuffix("gate_up_proj"), values.shape[1] // 2
        return {
            f"{base}gate_proj.weight": values[:, :half],
            f"{base}up_proj.weight": values[:, half:],
        }
    return {name: values}


def _gpt_oss(name: str, values: Array, config: Any) -> Tensors:
    if name.endswith("sinks"):
        return {f"{name}.weight": values}
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if ".experts." not in name:
        return {name: values}
    stacks = values if kind == "bias" else values.swapaxes(1, 2)
    if name.endswith("down_proj"):
        return {f"{name}.{kind}": stacks}
    base = name.removesuffix("gate_up_proj")
    return {f"{base}gate_proj.{kind}": stacks[:, ::2], f"{base}up_proj.{kind}": stacks[:, 1::2]}


def _lfm2_moe(name: str, values: Array, config: Any) -> Tensors:
    if name.endswith("expert_bias"):
        return {f"{name}.bias": values}
    if ".conv.conv." in name and values.ndim == 3:
        return {name: values.squeeze(1)}
    if ".experts." not in name:
        return {name: values}
    base = name.removeprefix("model.").rpartition(".")[0]
    if name.endswith("down_proj"):
        return {f"{base}.w2.weight": values}
    half = values.shape[1] // 2
    return {f"{base}.w1.weight": values[:, :half], f"{base}.w3.weight": values[:, half:]}


def _qwen3_5(name: str, values: Array, config: Any) -> Tensors:
    """_LinearAttentionVReorderBase: value heads in tiles, one of each key head."""
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    ratio, dim = heads // keys, config.linear_value_head_dim
    before = 2 * keys * config.linear_key_head_dim

    def tiled(rows: Array, size: int) -> Array:
        grouped = rows.reshape(keys, ratio, size, *rows.shape[1:])
        return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(rows.shape)

    if "conv1d" in name:
        values = values.squeeze(1)
    if "in_proj_qkv" in name or "conv1d" in name:
        values = np.concatenate([values[:before], tiled(values[before:], dim)])
    elif "in_proj_z" in name:
        values = tiled(values, dim)
    elif any(part in name for part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias")):
        values = tiled(values, 1)
    elif ".linear_attn.out_proj" in name:
        values = np.ascontiguousarray(tiled(np.ascontiguousarray(values.T), dim).T)
    if name.endswith("A_log"):
        values = -np.exp(values)
    if name.endswith("norm.weight") and "linear_attn" not in name:
        values = values + 1
    return _experts(name.replace(".dt_bias", ".dt_proj.bias"), values, config)


def _mamba2(name: str, values: Array, groups: int) -> Tensors:
    """Mamba2Model."""
    if name.endswith("A_log"):
        values = -np.exp(values)
    if name.endswith((".A_log", ".D")):
        values = values.reshape(-1, 1)
    elif name.endswith("conv1d.weight"):
        values = values.squeeze(1)
    elif name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        values = values.reshape(groups, -1)
    return {name.replace(".dt_bias", ".dt_proj.bias"): values}


def _granite(name: str, values: Array, config: Any) -> Tensors:
    """GraniteMoeModel and GraniteHybridModel."""
    blk = f"blk.{name.split('.')[2]}" if ".layers." in name else ""
    has_experts = bool(config.num_local_experts)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if part in heads:
        return {name: permuted(values, heads[part])}
    if "shared_mlp" in name:
        end = "_shexp" if has_experts else ""
        if "output_linear" in name:
            return {f"{blk}.ffn_down{end}.weight": values}
        gate, up = np.split(values, 2)
        return {f"{blk}.ffn_gate{end}.weight": gate, f"{blk}.ffn_up{end}.weight": up}
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        return {f"{blk}.ffn_gate_exps.weight": gate, f"{blk}.ffn_up_exps.weight": up}
    if name.endswith("experts.down_proj"):
        return {f"{blk}.ffn_down_exps.weight": values}
    if name.endswith("router.weight"):
        return {f"{blk}.ffn_gate_inp.weight": values}
    return _mamba2(name, values, getattr(config, "mamba_n_groups", 1))


def _nemotron_h(name: str, values: Array, config: Any) -> Tensors:
    name = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if (part := name.split(".")[-2]) in heads:
        return {name: permuted(values, heads[part])}
    return _mamba2(name, values, config.n_groups)


def _falcon_h1(name: str, values: Array, config: Any) -> Tensors:
    """FalconH1Model, which multiplies the constants into matrices."""
    factors = {
        "feed_forward.down_proj": config.mlp_multipliers[1],
        "feed_forward.gate_proj": config.mlp_multipliers[0],
        "self_attn.k_proj": config.key_multiplier * config.attention_in_multiplier,
        "self_attn.q_proj": config.attention_in_multiplier,
        "self_attn.v_proj": config.attention_in_multiplier,
        "self_attn.o_proj": config.attention_out_multiplier,
        "mamba.out_proj": config.ssm_out_multiplier,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    for part, factor in factors.items():
        if part in name:
            values = values * np.float32(factor)
    if "mamba.in_proj" in name:
        size, group = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        widths = [size, size, group, group, config.mamba_n_heads]
        sections = np.repeat(np.array(config.ssm_multipliers, np.float32), widths)
        values = values * np.float32(config.ssm_in_multiplier) * sections[:, None]
    return _mamba2(name, values, config.mamba_n_groups)


def _gemma4(name: str, values: Array, config: Any) -> Tensors:
    return {f"{name}.weight" if name.endswith("layer_scalar") else name: values}


def _gemma3n(name: str, values: Array, config: Any) -> Tensors:
    """Gemma3NModel; the matrices of streams are in `stacks`."""
    if "altup_" in name:
        return {}
    if "embed_tokens" in name:  # zeros for tokens of images and sound
        missing = config.vocab_size - len(values)
        values = np.concatenate([values, np.zeros((missing, values.shape[1]), values.dtype)])
    return {f"{name}.weight" if name.endswith("_scale") else name: values}


def stacks(tensors: Mapping[str, Array], config: Any) -> Tensors:
    """Gemma3NModel._stack_matrices: matrices outside the layers as one tensor."""
    if config.model_type != "gemma3n_text":
        return {}
    return {
        f"{kind}.weight": np.stack(
            [tensors[f"model.{kind}.{at}.weight"] for at in range(config.altup_num_inputs - 1)]
        )
        for kind in ("altup_projections", "altup_unembed_projections")
    }


def _apertus(name: str, values: Array, config: Any) -> Tensors:
    return {} if ".act_fn." in name else {name: values}


def _gpt_neox(name: str, values: Array, config: Any) -> Tensors:
    """GPTNeoXModel: all queries, all keys, all values."""
    if "query_key_value" in name:
        heads = config.num_attention_heads
        split = values.reshape(heads, 3, values.shape[0] // heads // 3, *values.shape[1:])
        values = np.ascontiguousarray(split.swapaxes(0, 1)).reshape(values.shape)
    return {name: values}


_CONVERTERS: dict[str, Callable[[str, Array, Any], Tensors]] = {
    "gpt_neox": _gpt_neox,
    "qwen3_moe": _experts,
    "olmoe": _experts,
    "gpt_oss": _gpt_oss,
    "lfm2_moe": _lfm2_moe,
    "granitemoe": _granite,
    "granitemoehybrid": _granite,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5,
    "nemotron_h": _nemotron_h,
    "falcon_h1": _falcon_h1,
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "apertus": _apertus,
}
