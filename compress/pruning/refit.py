"""Least squares after the cut: what remains of a matrix takes over for what was removed.

Where inputs of a matrix W [outputs, inputs] are removed (neurons of `down_proj`, heads of
`o_proj`), the columns K that remain are solved for so that the outputs on calibration text change
least:

    W' = W[:, K] + W[:, R] H[R, K] (H[K, K] + damping I)^-1,    H = X^T X,  R removed

This is the reconstruction of Optimal Brain Compression (Frantar et al. 2022, arXiv 2208.11580) with
all inputs removed at once. The checkpoint stays a plain one.
"""

import torch

from edgelm.compress.pruning.axes import layer_of
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import has_short_convs, mamba_of
from edgelm.spec.tensor_names import canonical_name

DAMPING = 0.01
"""Of the mean of H's diagonal, as in GPTQ: keeps H[K, K] invertible on few tokens."""


def refitted(weight: torch.Tensor, moments: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
    """The columns `remaining` of a matrix after least squares.

    Args:
        weight: [outputs, inputs].
        moments: second moments of the inputs, [inputs, inputs].
        remaining: ascending indices of the inputs that stay.

    Returns:
        [outputs, len(remaining)], in the weight's type; the weight's own columns, unchanged, where
        all inputs stay or none of them is ever active.
    """
    if len(remaining) == weight.shape[1]:
        return weight
    remaining = remaining.to(weight.device)
    moments = moments.to(weight.device, torch.float64)
    damping = DAMPING * moments.diagonal().mean()
    if not damping > 0:
        return weight.index_select(1, remaining)
    across = moments.index_select(1, remaining)
    within = across.index_select(0, remaining)
    within.diagonal().add_(damping)
    # Only the removed columns are distributed over the others: damping draws towards the weight.
    own = weight.index_select(1, remaining).double()
    lost = weight.double() @ across - own @ across.index_select(0, remaining)
    correction: torch.Tensor = torch.linalg.solve(within, lost.T).T
    return (own + correction).to(weight.dtype)


def refitted_parts(spec: DecoderSpec) -> tuple[str, ...]:
    """Parts of layers that are refitted when their inputs are removed, as `Hessians` names them.

    Experts are not among them: each would need second moments of its own, many times the model.
    Nor are Mamba-2 layers with a norm: it is over the channels of several heads, so that removing
    one changes what the others give.
    """
    mamba = mamba_of(spec)
    outputs = ["mlp.down", "mlp.shared.down", "attention.o"]
    if mamba and mamba.norm == "none":
        outputs.append("mamba.out")
    if has_short_convs(spec):
        outputs.append("conv.out")
    return tuple(outputs)


def refitted_group(spec: DecoderSpec, name: str) -> str | None:
    """The group of a tensor that is refitted; None for others."""
    if (layer := layer_of(name)) is None:
        return None
    inner, module = canonical_name(spec.family, name).split(".")[-3:-1]
    shared = spec.layers[layer].mlp is not None
    parts = {
        "down_proj": "mlp.shared.down" if shared else "mlp.down",
        "o_proj": "attention.o",
        "out_proj": f"{inner}.out",  # of Mamba-2, or a short convolution
    }
    part = parts.get(module)
    return f"layers.{layer}.{part}" if part in refitted_parts(spec) else None
