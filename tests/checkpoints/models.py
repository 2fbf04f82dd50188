"""Tiny random models of every family, seeded, with the traits that set the family apart."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoints.gemma import GEMMA
from tests.checkpoints.layer_norms import LAYER_NORMS

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
# name -> (model_type, what differs from _BASE)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-untied": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": _LLAMA3}),
    "linear-rope": ("llama", {"rope_parameters": _PLAIN | {"rope_type": "linear", "factor": 2.0}}),
    "yarn-rope": ("llama", {"rope_parameters": _YARN}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"pad_token_id": 0}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"sliding_window": 16}),
    "phi3-partial": (
        "phi3",
        {
            "head_dim": None,
            "hidden_size": 128,
            "rope_parameters": _PLAIN | {"partial_rotary_factor": 0.5},
        },
    ),
    **GEMMA,
    "ministral3": (
        "ministral3",
        {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.3}},
    ),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
            },
        },
    ),
    "exaone4": ("exaone4", {"sliding_window": 8}),
    "hunyuan": (
        "hunyuan_v1_dense",
        {
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 9.0, "rope_theta": 10_000.0}
            | {"factor": 1.0},
        },
    ),
    "arcee": ("arcee", {"mlp_bias": True}),
    "seed-oss": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "ernie4.5": ("ernie4_5", {"use_bias": True}),
    "glm": ("glm", {"head_dim": 32}),
    "glm4": ("glm4", {"head_dim": 32}),
    "apertus": ("apertus", {"rope_parameters": _LLAMA3}),
    **LAYER_NORMS,
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 5,
            "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"],
            "conv_bias": True,
            "intermediate_size": 132,
            "block_multiple_of": 8,
        },
    ),
    "qwen3.5": (
        "qwen3_5_text",
        {
            "head_dim": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        {
            "num_hidden_layers": 6,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"] * 2,
            "head_dim": None,
            "intermediate_size": 32,
            "shared_intermediate_size": 96,
            "num_local_experts": 0,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 24,
            "mamba_proj_bias": True,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            "num_hidden_layers": None,
            "layers_block_type": [
                *("linear_attention", "mlp", "full_attention", "linear_attention"),
                *("full_attention", "mlp", "mlp", "linear_attention"),
            ],
            "mlp_bias": True,
            "use_bias": True,
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 4,
            "ssm_state_size": 24,
            # The class limits dt by it in prompts only; and initial values are drawn above it.
            "time_step_min": 1e-30,
        },
    ),
    "granite-hybrid-moe": (
        "granitemoehybrid",
        _EXPERTS
        | {
            "num_experts": None,
            "num_local_experts": 6,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": None,
            "intermediate_size": 32,
            "shared_intermediate_size": 64,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 24,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "projectors_bias": True,
            "mamba_proj_bias": True,
            "mamba_d_ssm": 96,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 24,
            "embedding_multiplier": 5.0,
            "lm_head_multiplier": 0.04,
            "key_multiplier": 0.4,
            "attention_in_multiplier": 0.8,
            "attention_out_multiplier": 0.6,
            "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.25,
            "ssm_multipliers": [0.35, 0.5, 1.4, 0.7, 0.3],
            "mlp_multipliers": [0.8, 0.3],
        },
    ),
    "falcon-h1-norm": (
        "falcon_h1",
        {
            "num_hidden_layers": 2,
            "mamba_d_ssm": None,
            "mamba_n_heads": 4,
            "mamba_n_groups": 2,
            "mamba_d_state": 24,
            "mamba_rms_norm": True,
            "mamba_conv_bias": False,
        },
    ),
    "qwen3-moe": (
        "qwen3_moe",
        _EXPERTS | {"moe_intermediate_size": 32, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    "olmoe": ("olmoe", _EXPERTS),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "swiglu_limit": 0.7,
            "rope_parameters": _YARN | {"truncate": False},
        },
    ),
    "qwen3.5-moe": (
        "qwen3_5_moe_text",
        _EXPERTS
        | {
            "intermediate_size": None,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "head_dim": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "granite-moe": (
        "granitemoe",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "lfm2-moe": (
        "lfm2_moe",
        _EXPERTS
        | {
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "conv_bias": True,
            "routed_scaling_factor": 1.7,
        },
    ),
    "granite-swa": (
        "granite_swa",
        {
            "sliding_window": 8,
            "num_hidden_layers": 5,
            "layer_rope_theta": [0.0, 10_000.0, 20_000.0, 0.0, 10_000.0],
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    # With several key heads, of which layers may have fewer.
    "qwen3.5-keys": (
        "qwen3_5_text",
        TINY["qwen3.5"][1] | {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    # With heads as wide as Gemma 4 has in its layers without a window.
    "gemma4-512": (
        "gemma4_text",
        TINY["gemma4"][1] | {"global_head_dim": 512},
    ),
    # In the shape that CUDA's kernel for 8-bit caches (XQA) takes.
    "llama-wide": ("llama", {"hidden_size": 256, "head_dim": 64, "num_key_value_heads": 1}),
}


MIXTURES = (
    "gpt-oss",
    "granite-hybrid-moe",
    "granite-moe",
    "lfm2-moe",
    "olmoe",
    "qwen3-moe",
    "qwen3.5-moe",
)
# Those that can be pruned.
DENSE = tuple(name for name in TINY if name not in MIXTURES)
# One for each kind of layer and of scale. Tests of what is the same for all kinds (quantization,
# evaluation, training) take these in `make test`, and the others in `make slow`; tests of reading
# and of parity take all.
REPRESENTATIVE = (
    *("llama", "llama-untied", "gemma3", "gemma3n", "gemma4", "phi3-partial", "granite", "olmo2"),
    *("lfm2", "qwen3.5", "granite-hybrid", "nemotron-h", "qwen3-moe", "gpt-oss"),
)


def tiny_config(name: str, **over: Any) -> Any:
    """The Hugging Face configuration of a tiny model."""
    model_type, differs = (TINY | OTHERS)[name]
    values = {**_BASE, **differs, **over}
    values = {key: value for key, value in values.items() if value is not None}
    return AutoConfig.for_model(model_type, **values)


def tiny_model(name: str, *, seed: int = 0, **over: Any) -> Any:
    """A tiny random model in fp32; norms and biases are random too, so that none can be lost."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # Qwen3.5 draws its decays, around which `randomize` varies
        model = AutoModelForCausalLM.from_config(tiny_config(name, **over), dtype=torch.float32)
    randomize(model, seed=seed)
    return model.eval()


def randomize(model: Any, *, seed: int = 0) -> None:
    """Random values for all parameters of a model, and for constants that a checkpoint stores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.25 if parameter.ndim > 1 else 0.1
            if name.endswith("modality_router.weight"):
                std = 8.0  # Gemma 3n divides its inputs by the hidden size
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
        for key, buffer in model.named_buffers():
            if key.endswith("act_fn.beta"):  # of xIELU
                buffer += 0.2
            elif key.endswith("layer_scalar"):
                buffer += torch.randn(buffer.shape, generator=generator) * 0.2
            elif key.endswith("expert_bias"):
                buffer += torch.randn(buffer.shape, generator=generator) * 0.3


def decide_clearly(model: Any) -> None:
    """Make routers choose the same experts whatever is rounded a little."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("mlp.gate.weight", "mlp.router.weight")):
                parameter *= 30.0
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer += 2.0 * torch.arange(len(buffer))


def soften_attention(model: Any) -> None:
    """Give Gemma 3n's and 4's queries the size that others have: scaled by 1 / sqrt(head_dim)."""
    if model.config.model_type not in ("gemma3n_text", "gemma4_text"):
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):
                parameter /= len(parameter) ** 0.5


def save_tiny(name: str, folder: Path, **over: Any) -> Any:
    """Save a tiny model as a Hugging Face folder (without tokenizer) and return it."""
    model = tiny_model(name, **over)
    model.save_pretrained(folder)
    return model
