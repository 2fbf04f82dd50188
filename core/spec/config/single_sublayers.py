"""The layers of Nemotron-H, each of which is a mixer or an MLP."""

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_LAYERS, Fields
from edgelm.spec.config.mixer_fields import conv_kernel
from edgelm.spec.decoder import LayerSpec
from edgelm.spec.layers.mixers import Mamba2, NoMixer

_ATTENTION, _MAMBA, _MLP, _EXPERTS = "full_attention", "linear_attention", "mlp", "moe"
_LETTERS = {"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": _EXPERTS}
# What older checkpoints call them.
_OLDER = {"mamba": _MAMBA, "attention": _ATTENTION}
# Other names of fields, which Transformers reads when a configuration is made.
_RENAMED = ("mamba_n_groups", "mamba_d_conv", "mamba_conv_bias", "mamba_expand", "mamba_dt_limit")


def sublayer_kinds(fields: Fields) -> list[str]:
    """What each layer is, from `layers_block_type` or the letters of `hybrid_override_pattern`.

    The pattern comes last, as in the class.

    Raises:
        BadCheckpoint: unknown kinds, experts, no attention, or too many layers.
    """
    name = next((one for one in _LISTS if one in fields), _LISTS[-1])
    listed = fields.values.get(name)
    if isinstance(listed, str) and name == "hybrid_override_pattern":
        kinds = [_LETTERS.get(one, one) for one in listed]
    elif isinstance(listed, list | tuple) and all(isinstance(one, str) for one in listed):
        kinds = [_OLDER.get(str(one), str(one)) for one in listed]
    else:
        raise fields.wrong(name, "the kind of each layer")
    unknown = next((one for one in kinds if one not in _LETTERS.values()), None)
    if unknown is not None:
        raise BadCheckpoint(
            f"{fields.where}: {name} has the kind {shown(unknown)}, expected "
            f"{_ATTENTION}, {_MAMBA} or {_MLP} (in a pattern: *, M or -)"
        )
    if _EXPERTS in kinds:
        raise BadCheckpoint(
            f"{fields.where}: {name} has layers with a mixture of experts (moe or E), which "
            "Nemotron-H computes without a gate; these are not supported"
        )
    if _ATTENTION not in kinds:
        raise BadCheckpoint(
            f"{fields.where}: no layer has attention; at least one is needed to know positions"
        )
    if len(kinds) > MAX_LAYERS:
        raise BadCheckpoint(f"{fields.where}: {name} has more than {MAX_LAYERS} layers")
    return kinds


def sublayers(fields: Fields) -> tuple[LayerSpec, ...]:
    """The layers, none of which rotates its queries.

    Raises:
        BadCheckpoint: as `sublayer_kinds`; or sizes that do not divide each other, or activations
            other than the class's.
    """
    made = {
        _ATTENTION: LayerSpec(None, intermediate_size=0),
        _MAMBA: LayerSpec(None, mixer=_mamba2(fields), intermediate_size=0),
        _MLP: LayerSpec(None, mixer=NoMixer()),
    }
    return tuple(made[kind] for kind in sublayer_kinds(fields))


def _mamba2(fields: Fields) -> Mamba2:
    for name in _RENAMED:
        if name in fields:
            raise BadCheckpoint(
                f"{fields.where}: {name} is an older name, expected the field that Nemotron-H's "
                "class has today; load the model with Transformers and save it again"
            )
    if fields.flag("tie_word_embeddings"):
        raise BadCheckpoint(
            f"{fields.where}: tie_word_embeddings is true, expected false: Nemotron-H's "
            "class has a head of its own"
        )
    heads, n_groups = fields.required("mamba_num_heads"), fields.required("n_groups")
    if heads % n_groups:
        raise BadCheckpoint(
            f"{fields.where}: mamba_num_heads {heads} is not a multiple of n_groups {n_groups}"
        )
    if fields.values.get("mamba_hidden_act") not in ("silu", "swish"):
        raise fields.wrong("mamba_hidden_act", "silu: layers of Mamba-2 have no other activation")
    return Mamba2(
        heads,
        fields.required("mamba_head_dim"),
        n_groups,
        fields.required("ssm_state_size"),
        conv_kernel(fields, "conv_kernel"),
        fields.flag("use_conv_bias"),
        fields.flag("use_bias"),
        fields.flag("use_bias"),
    )


_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
