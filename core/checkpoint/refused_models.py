"""Models that edgelm cannot export, by `model_type`, and what their layers have that it lacks."""

_MAMBA = "its layers can be state-space mixers (Mamba), which edgelm's graphs cannot express yet"
_LATENT = "its attention compresses keys and values into a latent vector (MLA)"
REFUSED = {
    **dict.fromkeys(
        (
            "bamba",
            "falcon_mamba",
            "jamba",
            "mamba",
            "mamba2",
            "zamba",
            "zamba2",
        ),
        _MAMBA,
    ),
    "gemma4_assistant": "it drafts for its model: edge-export MODEL --assistant DIR",
    "gpt2": "its positions are rows of a table, not rotations",
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT),
    "llama4": "its experts scale their inputs, and its layers attend in chunks",
    "mllama": "its decoder attends to images in layers of its own",
}
