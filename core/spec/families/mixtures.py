"""The families with mixtures of experts; a part of `FAMILIES` (edgelm.spec.families.table)."""

from edgelm.spec.families.family import Experts, Family
from edgelm.spec.families.shared_rows import GRANITE_4, LFM2_NAMES, QWEN_3_5

MIXTURES: dict[str, Family] = {
    "qwen3_moe": Family(
        qk_norm="head",
        windows="used",
        experts=Experts("step"),
        names={"mlp.router": "mlp.gate"},
        defaults={
            "sliding_window": 4096,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        },
    ),
    "olmoe": Family(
        qk_norm="full",
        derived_heads=True,  # its class norms queries over hidden_size channels
        experts=Experts(size_field="intermediate_size"),
        names={"mlp.router": "mlp.gate"},
        defaults={"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "gpt_oss": Family(
        attention_sinks=True,
        windows="alternating",
        experts=Experts(
            size_field="intermediate_size",
            normalized=True,
            biased=True,
            clamped=True,
            by_input=True,
        ),
        defaults={
            "attention_bias": True,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "num_experts": 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "qwen3_5_moe_text": Family(
        norm_plus_one=True,
        qk_norm="head",
        attention_gate=True,
        partial_rotation=True,
        mixer="gated_delta",
        experts=Experts(
            normalized=True, shared_field="shared_expert_intermediate_size", shared_gate=True
        ),
        names={"mlp.router": "mlp.gate"},
        defaults=QWEN_3_5
        | {
            "num_key_value_heads": 2,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
    ),
    "granitemoe": Family(
        multipliers=True,
        experts=Experts(size_field="intermediate_size", normalized=True),
        names={
            "mlp.router": "block_sparse_moe.router",
            "mlp.experts.gate_up_proj": "block_sparse_moe.experts.gate_up_proj",
            "mlp.experts.down_proj": "block_sparse_moe.experts.down_proj",
        },
        defaults={"attention_multiplier": 1.0, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    # Granite 4 H; without experts, the expert that always runs is the MLP.
    "granitemoehybrid": Family(
        fused_gate_up=True,
        multipliers=True,
        mixer="mamba2",
        rotation="typed",
        ffn_field="shared_intermediate_size",
        experts=Experts(
            size_field="intermediate_size",
            normalized=True,
            shared_field="shared_intermediate_size",
            shared_fused=True,
        ),
        names={
            "mlp.router": "block_sparse_moe.router",
            "mlp.experts.gate_up_proj": "block_sparse_moe.experts.gate_up_proj",
            "mlp.experts.down_proj": "block_sparse_moe.experts.down_proj",
            "mlp.shared_expert.gate_up_proj": "shared_mlp.input_linear",
            "mlp.shared_expert.down_proj": "shared_mlp.output_linear",
            "mlp.gate_up_proj": "shared_mlp.input_linear",
            "mlp.down_proj": "shared_mlp.output_linear",
        },
        defaults=GRANITE_4,
    ),
    "lfm2_moe": Family(
        qk_norm="head",
        qkv_bias=False,
        o_bias=False,
        mixer="short_conv",
        eps_field="norm_eps",
        experts=Experts(
            "after_dense",
            scores="sigmoid",
            epsilon=1e-6,
            scaled=True,
            selection_bias="use_expert_bias",
        ),
        names=LFM2_NAMES
        | {
            "mlp.router": "feed_forward.gate",
            "mlp.expert_bias": "feed_forward.expert_bias",
            "mlp.experts.gate_up_proj": "feed_forward.experts.gate_up_proj",
            "mlp.experts.down_proj": "feed_forward.experts.down_proj",
        },
        defaults={
            "norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "conv_L_cache": 3,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1792,
            "use_expert_bias": True,
            "norm_topk_prob": True,
        },
    ),
}
