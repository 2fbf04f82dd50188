"""Layers that have sizes of their own: what `edgelm_layers` in a configuration says of a student.

    "edgelm_layers": [{"num_key_value_heads": 1}, {"attention": false, "intermediate_size": 512}]

has one object for each layer. What is left out is as in every other layer. A layer may have a
narrower MLP (0: none), fewer key heads, each with as many query heads as elsewhere, or no
attention. transformers ignores the field: the weights next to it are padded with zeros to the sizes
of the configuration, and compute the same.
"""

import msgspec

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.families.family import Family
from edgelm.spec.layers.heads import HeadSizes
from edgelm.spec.layers.mixers import NoMixer

FIELD = "edgelm_layers"
_KNOWN = ("attention", "intermediate_size", "num_key_value_heads")


def with_own_sizes(
    fields: Fields,
    family: Family,
    layers: tuple[LayerSpec, ...],
    intermediate_size: int,
    heads: HeadSizes,
) -> tuple[LayerSpec, ...]:
    """The layers with the sizes that `edgelm_layers` gives them.

    Args:
        fields: the configuration.
        family: of the decoder.
        layers: with the sizes that all layers have.
        intermediate_size: of all layers.
        heads: of all layers.

    Raises:
        BadCheckpoint: the field is not as this module describes it.
    """
    listed = fields.each_layer(FIELD, len(layers))
    if listed is None:
        return layers
    found = tuple(
        _with_own_sizes(_own(fields, index, own), family, layer, intermediate_size, heads)
        for index, (own, layer) in enumerate(zip(listed, layers, strict=True))
    )
    if not any(layer.attends for layer in found):
        raise BadCheckpoint(f"{fields.where}: {FIELD} leaves no layer its attention")
    return found


def own_sizes(spec: DecoderSpec) -> list[dict[str, int | bool]] | None:
    """The value of `edgelm_layers` for a decoder; None if its layers have the same sizes."""
    if not spec.has_own_sizes:
        return None
    return [
        ({"attention": False} if isinstance(layer.mixer, NoMixer) else {})
        | {
            name: size
            for name, size in (
                ("num_key_value_heads", layer.num_attention_heads and layer.num_key_value_heads),
                ("intermediate_size", layer.intermediate_size),
            )
            if size is not None
        }
        for layer in spec.layers
    ]


def padded(spec: DecoderSpec) -> DecoderSpec:
    """The decoder with the same sizes in every layer, which holds a padded checkpoint."""
    return msgspec.structs.replace(spec, layers=tuple(map(_padded, spec.layers)))


def with_key_heads(layer: LayerSpec, keys: int, heads: HeadSizes) -> LayerSpec:
    """A layer with `keys` of all layers' key heads, and the query heads of these."""
    if keys == heads.keys:
        return layer
    queries = keys * (heads.queries // heads.keys)
    return msgspec.structs.replace(layer, num_key_value_heads=keys, num_attention_heads=queries)


def why_all_heads(qk_norm: str) -> str | None:
    """Why layers cannot have fewer heads than others; None if they can."""
    if qk_norm != "full":
        return None
    return "queries and keys are normed over all heads together, so that none is independent"


def _padded(layer: LayerSpec) -> LayerSpec:
    if isinstance(layer.mixer, NoMixer):
        layer = msgspec.structs.replace(layer, mixer=None)
    if layer.num_attention_heads:
        layer = msgspec.structs.replace(layer, num_attention_heads=None, num_key_value_heads=None)
    return msgspec.structs.replace(layer, intermediate_size=None)


def _own(fields: Fields, index: int, own: object) -> Fields:
    where = f"{fields.where}: {FIELD}[{index}]"
    if not isinstance(own, dict) or not own.keys() <= set(_KNOWN):
        raise BadCheckpoint(f"{where} is {shown(own)}, expected an object of {', '.join(_KNOWN)}")
    return Fields(own, where=where)


def _with_own_sizes(
    own: Fields, family: Family, layer: LayerSpec, most: int, heads: HeadSizes
) -> LayerSpec:
    size = own.integer("intermediate_size", least=0, most=most)
    keys = own.integer("num_key_value_heads", most=heads.keys)
    attends = own.flag("attention") if "attention" in own else True
    if not attends and not layer.attends:
        raise BadCheckpoint(f"{own.where}: the layer has no attention to leave out")
    if keys is not None and not (attends and layer.attends):
        raise BadCheckpoint(
            f"{own.where}: num_key_value_heads is {keys}, and the layer has no attention"
        )
    if keys not in (None, heads.keys):
        layer = _with_key_heads(own, family, layer, keys, heads)
    if not attends:
        layer = LayerSpec(None, mixer=NoMixer())
    return msgspec.structs.replace(layer, intermediate_size=None if size == most else size)


def _with_key_heads(
    own: Fields, family: Family, layer: LayerSpec, keys: int, heads: HeadSizes
) -> LayerSpec:
    reason = why_all_heads(family.qk_norm)
    if layer.beside is not None or family.global_heads:
        reason = "its layers' heads differ already, or have other mixers beside them"
    if reason is not None:
        raise BadCheckpoint(
            f"{own.where}: num_key_value_heads is {keys}, expected {heads.keys}, that of all "
            f"layers: {reason}"
        )
    return with_key_heads(layer, keys, heads)
