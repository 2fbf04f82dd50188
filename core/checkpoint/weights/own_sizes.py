"""Tensors of layers that have sizes of their own, and of the padded checkpoint that holds them.

A padded tensor has zeros behind the layer's own rows and columns (of matrices that are stored as
one, such as gate and up, behind each). A left out neuron or head adds nothing to the output, and a
left out attention has an output projection of zeros, so that any reader of the padded checkpoint
computes the same.
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

_OUTPUTS = ("mlp.down_proj.weight", "self_attn.o_proj.weight")


def stored_shapes(spec: DecoderSpec, found: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The shapes that a checkpoint's tensors should have: padded, or the layers' own."""
    own = tensor_shapes(spec)
    if not spec.has_own_sizes or found == own:
        return own
    return tensor_shapes(padded(spec))


def own_part(spec: DecoderSpec, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """The part of a padded tensor that belongs to its layer; the tensor itself without padding.

    Raises:
        BadCheckpoint: a left out neuron or head has weights that change the output.
    """
    shape = tensor_shapes(spec)[name]
    if tuple(tensor.shape) == shape:
        return tensor
    if canonical_name(spec.family, name).endswith(_OUTPUTS):
        _check_zero(name, tensor[:, shape[1] :])
    if tensor.shape[0] != shape[0]:
        own, whole = (stacked_rows(one, name) for one in (spec, padded(spec)))
        parts = [part[:size] for part, size in zip(tensor.split(whole), own, strict=True)]
        tensor = parts[0] if len(parts) == 1 else _joined(parts)
    return tensor[:, : shape[1]] if tensor.shape[1:] != shape[1:] else tensor


def padded_tensors(
    spec: DecoderSpec, state: Mapping[str, "torch.Tensor"]
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """All tensors of the padded checkpoint, from those of layers with their own sizes."""
    like = next(iter(state.values()))
    full = padded(spec)
    for name, shape in tensor_shapes(full).items():
        own = state.get(name)
        if own is not None and tuple(own.shape) == shape:
            yield name, own
            continue
        whole = like.new_zeros(shape)
        if own is not None:
            rows = stacked_rows(full, name), stacked_rows(spec, name)
            for target, part in zip(whole.split(rows[0]), own.split(rows[1]), strict=True):
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


def stacked_rows(spec: DecoderSpec, name: str) -> list[int]:
    """Rows of the matrices that a layer's tensor is stacked of; of most, its own alone."""
    canonical = canonical_name(spec.family, name)
    rows = tensor_shapes(spec)[name][0]
    if "mlp.gate_up_proj." in canonical:
        return [rows // 2] * 2
    if "self_attn.qkv_proj." in canonical and not spec.qkv_by_head:
        return list(spec.projected_sizes(spec.layers[int(canonical.split(".")[2])]))
    return [rows]


def _joined(parts: list["torch.Tensor"]) -> "torch.Tensor":
    import torch

    return torch.cat(parts)
