"""Fields of mixtures of experts, from the keys `expert_*`."""

from typing import Any

import numpy as np

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.errors import BadCheckpoint

_SIGMOID = 2  # llama.cpp's number for how scores are made of a router's logits
# Keys that must have one of these values, which is what edgelm computes.
_EXPECTED: dict[str, tuple[float, ...]] = {
    "expert_shared_count": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
}
_SIZE = "expert_feed_forward_length"


def qwen3moe(keys: Keys) -> dict[str, Any]:
    """Qwen3-MoE; llama.cpp knows none with dense layers."""
    used, size = keys.size("expert_used_count"), keys.size("feed_forward_length")
    return {
        **_experts(keys),
        "moe_intermediate_size": keys.size(_SIZE, max(1, size // used)),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def qwen35moe(keys: Keys) -> dict[str, Any]:
    """The experts of Qwen3.5, one of which runs for every token; no layer is dense."""
    return {
        **_experts(keys),
        "intermediate_size": None,
        "moe_intermediate_size": keys.size(_SIZE),
        "shared_expert_intermediate_size": keys.size("expert_shared_feed_forward_length"),
    }


def olmoe(keys: Keys) -> dict[str, Any]:
    """OLMoE, whose only size is that of an expert."""
    return _experts(keys)


def gpt_oss(keys: Keys) -> dict[str, Any]:
    """gpt-oss."""
    sizes = {"intermediate_size": keys.size(_SIZE)}
    return sizes | _experts(keys, "num_local_experts")


def lfm2moe(keys: Keys) -> dict[str, Any]:
    """LFM2, whose first layers are dense."""
    scores = keys.size("expert_gating_func")
    if scores != _SIGMOID:
        raise keys.metadata.wrong(keys.key("expert_gating_func"), f"{_SIGMOID}, for sigmoid")
    return {
        **_experts(keys),
        "moe_intermediate_size": keys.size(_SIZE),
        "num_dense_layers": keys.count("leading_dense_block_count"),
    }


def granite(keys: Keys) -> dict[str, Any]:
    """Granite; a hybrid's experts are optional."""
    if not keys.count("expert_count"):
        return {}
    if keys.architecture == "granitemoe" and keys.count("expert_shared_feed_forward_length"):
        raise BadCheckpoint(
            f"{keys.path}: {keys.key('expert_shared_feed_forward_length')} is set, and Granite "
            "with attention in every layer and a shared expert is not supported"
        )
    return _experts(keys, "num_local_experts")


def _experts(keys: Keys, name: str = "num_experts") -> dict[str, Any]:
    for key, expected in _EXPECTED.items():
        value = keys.metadata.values.get(keys.key(key))
        if isinstance(value, np.ndarray):
            raise keys.metadata.wrong(keys.key(key), str(expected[1]))
        if value is not None and value not in expected:
            raise BadCheckpoint(
                f"{keys.path}: {keys.key(key)} is {value}, expected {expected[1]}: other values "
                f"are not supported in {keys.architecture}"
            )
    return {name: keys.size("expert_count"), "num_experts_per_tok": keys.size("expert_used_count")}
