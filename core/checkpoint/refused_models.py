"""Models that edgelm cannot export, by `model_type`, and what their layers have that it lacks."""

_ALTUP = "its layers predict and correct four streams (AltUp) and leave out activations"
_MAMBA = "its layers can be state-space mixers (Mamba), which edgelm's graphs cannot express yet"
_LAYER_NORM = "its norms subtract the mean (LayerNorm); edgelm's graphs have RMSNorm only"
_LATENT = "its attention compresses keys and values into a latent vector (MLA)"
REFUSED = {
    **dict.fromkeys(("gemma3n", "gemma3n_text"), _ALTUP),
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
    **dict.fromkeys(
        ("cohere", "cohere2", "gpt2", "gpt_neox", "phi", "stablelm", "starcoder2"), _LAYER_NORM
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT),
    "llama4": "its experts scale their inputs, and its layers attend in chunks",
    "mllama": "its decoder attends to images in layers of its own",
}
