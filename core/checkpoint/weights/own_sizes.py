"""Tensors of layers that have sizes of their own, and of the padded checkpoint that holds them.

A padded tensor has zeros behind the layer's own rows and columns (of gate and up in one matrix,
behind each half). A left out neuron adds nothing to the output, and a left out attention has an
output projection of zeros, so that any reader of the padded checkpoint computes the same.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgelm.errors import BadCheckpoint
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.mixers import NoMixer
from edgelm.spec.own_sizes import padded
from edgelm.spec.tensor_names import canonical_name, stored_name
from edgelm.spec.tensor_shapes import Shapes, tensor_shapes

if TYPE_CHECKING:
    import torch


def stored_shapes(spec: DecoderSpec, found: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The shapes that a checkpoint's tensors should have: padded, or the layers' own."""
    own = tensor_shapes(spec)
    if not spec.has_own_sizes or found == own:
        return own
    return tensor_shapes(padded(spec))


def own_part(spec: DecoderSpec, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """The part of a padded tensor that belongs to its layer; the tensor itself without padding.

    Raises:
        BadCheckpoint: a left out neuron has weights that change the output.
    """
    shape = tensor_shapes(spec)[name]
    if tuple(tensor.shape) == shape:
        return tensor
    if canonical_name(spec.family, name).endswith("mlp.down_proj.weight"):
        _check_zero(name, tensor[:, shape[1] :])
    for dimension, size in enumerate(shape):
        if size == tensor.shape[dimension]:
            continue
        if _is_fused(spec, name):
            tensor = _joined(part[: size // 2] for part in tensor.chunk(2))
        else:
            tensor = tensor.narrow(dimension, 0, size)
    return tensor


def padded_tensors(
    spec: DecoderSpec, state: Mapping[str, "torch.Tensor"]
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """All tensors of the padded checkpoint, from those of layers with their own sizes."""
    like = next(iter(state.values()))
    for name, shape in tensor_shapes(padded(spec)).items():
        own = state.get(name)
        if own is not None and tuple(own.shape) == shape:
            yield name, own
            continue
        whole = like.new_zeros(shape)
        if own is not None:
            halves = 2 if _is_fused(spec, name) else 1
            for target, part in zip(whole.chunk(halves), own.chunk(halves), strict=True):
                target[tuple(slice(size) for size in part.shape)] = part
        yield name, whole


def left_out_outputs(spec: DecoderSpec) -> list[str]:
    """The output projections of attention that layers leave out, in the padded checkpoint."""
    return [
        stored_name(spec.family, f"model.layers.{index}.self_attn.o_proj.weight")
        for index, layer in enumerate(spec.layers)
        if isinstance(layer.mixer, NoMixer)
    ]


def check_left_out(name: str, tensor: "torch.Tensor") -> None:
    """Raise BadCheckpoint unless a projection that is left out is zero."""
    _check_zero(name, tensor)


def _check_zero(name: str, part: "torch.Tensor") -> None:
    if bool(part.any()):
        raise BadCheckpoint(
            f"{name} has nonzero weights in a part that edgelm_layers of config.json leaves out, "
            "expected zeros there; remove edgelm_layers to use all weights"
        )


def _is_fused(spec: DecoderSpec, name: str) -> bool:
    return "mlp.gate_up_proj." in canonical_name(spec.family, name)


def _joined(parts: Iterator["torch.Tensor"]) -> "torch.Tensor":
    import torch

    return torch.cat(list(parts))
