"""What a layer may have in place of the teacher's attention or MLP."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.layers.mixers import NoMixer
from edgelm.spec.own_sizes import why_all_heads, with_key_heads

Half = Literal["attention", "mlp"]


class Alternative(msgspec.Struct, frozen=True, order=True):
    """A smaller half of one layer.

    size: of an MLP its intermediate size, of attention its key heads; 0 for none.
    """

    layer: int
    half: Half
    size: int = 0

    @property
    def name(self) -> str:
        """E.g. `3.mlp.512`."""
        return f"{self.layer}.{self.half}.{self.size}"

    @property
    def leaves_out_attention(self) -> bool:
        """Whether the layer does not attend."""
        return self.half == "attention" and not self.size

    @property
    def is_trained(self) -> bool:
        """Whether it has weights of its own."""
        return self.size > 0


class Score(msgspec.Struct, frozen=True):
    """An alternative, and the KL from the teacher that it alone causes, in nats per token."""

    alternative: Alternative
    kl: float


def alternatives(spec: DecoderSpec, settings: PuzzleSettings, multiple: int) -> list[Alternative]:
    """All alternatives of a teacher's layers, by layer.

    Args:
        spec: the teacher.
        settings: which ones.
        multiple: of widths that the engine has kernels for; others are rounded down to it.

    Raises:
        BadInput: the teacher is not one that Puzzle can be played with.
    """
    _check_teacher(spec)
    _check_heads(spec, settings)
    full = spec.intermediate_size
    sizes = {int(full * ratio) // multiple * multiple for ratio in settings.mlp_ratios}
    found = []
    for index, layer in enumerate(spec.layers):
        if layer.attends:
            heads = sorted(settings.kv_heads, reverse=True)
            found += [Alternative(index, "attention", size) for size in heads]
        if settings.leave_out_attention and layer.attends:
            found.append(Alternative(index, "attention"))
        found += [Alternative(index, "mlp", size) for size in sorted(sizes - {full}, reverse=True)]
    return found


def with_alternatives(spec: DecoderSpec, chosen: Sequence[Alternative]) -> DecoderSpec:
    """The decoder with some halves of its layers replaced, as it is stored.

    Its `intermediate_size` is the largest of all layers, to which others are padded. Heads are
    padded to the teacher's.
    """
    layers = list(spec.layers)
    for one in chosen:
        layer = layers[one.layer]
        if one.half == "attention" and one.size:
            heads = spec.heads(spec.layers[one.layer])
            layers[one.layer] = with_key_heads(layer, one.size, heads)
        elif one.half == "attention":
            own = layer.intermediate_size
            layers[one.layer] = LayerSpec(None, mixer=NoMixer(), intermediate_size=own)
        else:
            layers[one.layer] = msgspec.structs.replace(layer, intermediate_size=one.size)
    largest = max(map(spec.mlp_size, layers)) or spec.intermediate_size
    fitted = (
        msgspec.structs.replace(
            layer, intermediate_size=None if (size := spec.mlp_size(layer)) == largest else size
        )
        for layer in layers
    )
    return msgspec.structs.replace(spec, intermediate_size=largest, layers=tuple(fitted))


def _check_teacher(spec: DecoderSpec) -> None:
    if spec.has_own_sizes:
        raise BadInput(
            "[puzzle]: the layers of this teacher already have different sizes; use the teacher "
            "that it was made from"
        )
    if (reason := _why_not_replaced(spec)) is not None:
        raise BadInput(
            f"[puzzle] cannot replace layers of {spec.family}: {reason}; use [search] or [prune]"
        )
    if spec.mixtures:
        raise BadInput(
            f"[puzzle] has no alternatives for mixtures of experts, which {spec.family} has; use "
            "[prune] or [search]"
        )


def _why_not_replaced(spec: DecoderSpec) -> str | None:
    """Why `edgelm_layers` (edgelm.spec.own_sizes) cannot describe a student of this decoder."""
    if spec.single_sublayers:
        return "each of its layers is an attention, a Mamba-2 or an MLP already"
    if any(layer.beside is not None for layer in spec.layers):
        return "its attention is parallel to Mamba-2, with the same inputs"
    if any(layer.shares_kv_of is not None for layer in spec.layers) or spec.lists_mlp_sizes:
        return "its layers read keys and values of others, or already differ in size"
    if spec.has_layer_heads or spec.per_layer_inputs is not None:
        return "its layers have heads or inputs of their own"
    return None


def _check_heads(spec: DecoderSpec, settings: PuzzleSettings) -> None:
    most = spec.num_key_value_heads
    if wrong := [size for size in settings.kv_heads if size >= most]:
        expected = f"1 to {most - 1}" if most > 1 else "none"
        raise BadInput(
            f"[puzzle] kv_heads: {wrong[0]} is not fewer than the teacher's {most} key heads; "
            f"expected {expected}"
        )
    if settings.kv_heads and (reason := why_all_heads(spec.qk_norm)) is not None:
        raise BadInput(
            f"[puzzle] kv_heads cannot be used with {spec.family}: {reason}; remove kv_heads"
        )
