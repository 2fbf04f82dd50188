"""Models that edgelm cannot export, by `model_type`, and what their layers have that it lacks."""

_MAMBA = "its layers can be state-space mixers (Mamba), which edgelm's graphs cannot express yet"
_UNBIASED_NORM = "its norms subtract the mean and have no bias (LayerNorm)"
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
    **dict.fromkeys(("cohere", "cohere2"), _UNBIASED_NORM),
    "gpt2": "its positions are rows of a table, not rotations",
    "gpt_neox": "its checkpoints store queries, keys and values head by head (GPT-NeoX, Pythia)",
    "phi": "its head has a bias",
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT),
    "llama4": "its experts scale their inputs, and its layers attend in chunks",
    "mllama": "its decoder attends to images in layers of its own",
}
