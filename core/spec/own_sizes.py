"""Layers that have sizes of their own: what `edgelm_layers` in a configuration says of a student.

    "edgelm_layers": [{}, {"intermediate_size": 512}, {"attention": false, "intermediate_size": 0}]

has one object for each layer. What is left out is as in every other layer. A layer may have a
narrower MLP, no MLP, or no attention. transformers ignores the field: the weights next to it are
padded with zeros to the sizes of the configuration, and compute the same.
"""

import msgspec

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.decoder import DecoderSpec, LayerSpec
from edgelm.spec.layers.mixers import NoMixer

FIELD = "edgelm_layers"
_KNOWN = {"attention", "intermediate_size"}


def with_own_sizes(
    fields: Fields, layers: tuple[LayerSpec, ...], intermediate_size: int
) -> tuple[LayerSpec, ...]:
    """The layers with the sizes that `edgelm_layers` gives them.

    Raises:
        BadCheckpoint: the field is not as this module describes it.
    """
    listed = fields.each_layer(FIELD, len(layers))
    if listed is None:
        return layers
    found = tuple(
        _with_own_sizes(fields, index, own, layer, intermediate_size)
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
        | (
            {}
            if layer.intermediate_size is None
            else {"intermediate_size": layer.intermediate_size}
        )
        for layer in spec.layers
    ]


def padded(spec: DecoderSpec) -> DecoderSpec:
    """The decoder with the same sizes in every layer, which holds a padded checkpoint."""
    layers = tuple(
        msgspec.structs.replace(
            layer,
            mixer=None if isinstance(layer.mixer, NoMixer) else layer.mixer,
            intermediate_size=None,
        )
        for layer in spec.layers
    )
    return msgspec.structs.replace(spec, layers=layers)


def _with_own_sizes(
    fields: Fields, index: int, own: object, layer: LayerSpec, most: int
) -> LayerSpec:
    where = f"{fields.where}: {FIELD}[{index}]"
    if not isinstance(own, dict) or not own.keys() <= _KNOWN:
        raise BadCheckpoint(
            f"{where} is {shown(own)}, expected an object of {' and '.join(sorted(_KNOWN))}"
        )
    inner = Fields(own, where=where)
    size = inner.integer("intermediate_size", least=0, most=most)
    attends = inner.flag("attention") if "attention" in own else True
    if not attends and not layer.attends:
        raise BadCheckpoint(f"{where}: the layer has no attention to leave out")
    if not attends:
        layer = LayerSpec(None, mixer=NoMixer())
    return msgspec.structs.replace(layer, intermediate_size=None if size == most else size)
