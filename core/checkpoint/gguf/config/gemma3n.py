"""Fields of Gemma 3n: several residual streams, sparse activations, inputs for every layer."""

import math
from statistics import NormalDist
from typing import Any

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.errors import BadCheckpoint

_DEFAULT_CAP = 30.0  # of logits, as in llama.cpp
_DIGITS = 7  # of a share; the file has its quantile in fp32
_LEFT = "model.layers.0.laurel.linear_left.weight"


def gemma3n(keys: Keys) -> dict[str, Any]:
    """The fields that differ from other architectures' or come besides.

    Raises:
        BadCheckpoint: a key or a tensor is missing, or has an invalid value.
    """
    table = keys.shapes.get("model.embed_tokens_per_layer.weight")
    left = keys.shapes.get(_LEFT)
    if not table or not left:
        raise BadCheckpoint(
            f"{keys.path} lacks per_layer_token_embd.weight or blk.0.laurel_l.weight, which every "
            "gemma3n model has; convert the model again"
        )
    cap = keys.metadata.number(keys.key("final_logit_softcapping"), _DEFAULT_CAP)
    return {
        "intermediate_size": keys.each_layer("feed_forward_length"),
        "activation_sparsity_pattern": _sparsity(keys),
        "num_kv_shared_layers": keys.count("attention.shared_kv_layers"),
        "hidden_size_per_layer_input": keys.size("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": table[0],
        "altup_num_inputs": keys.size("altup.num_inputs"),
        "altup_active_idx": keys.count("altup.active_idx"),
        "laurel_rank": left[0],
        "final_logit_softcapping": cap,
    }


def _sparsity(keys: Keys) -> list[float]:
    """Shares of gates, of which the file has the quantiles of the normal distribution."""
    key = keys.key("activation_sparsity_scale")
    quantiles = keys.metadata.numbers(key, "f")
    if quantiles is None:
        raise keys.missing("activation_sparsity_scale")
    if len(quantiles) != keys.layers or any(math.isnan(one) for one in quantiles):
        raise keys.metadata.wrong(key, f"one number for each of {keys.layers} layers")
    return [round(NormalDist().cdf(one), _DIGITS) for one in quantiles]
