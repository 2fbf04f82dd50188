"""Mixtures of experts of each layer, read as the family's class does."""

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.families.family import Experts, Family
from edgelm.spec.layers.experts import MixtureOfExperts

_MAX_EXPERTS = 4096


def layer_experts(fields: Fields, family: Family, count: int) -> list[MixtureOfExperts | None]:
    """For each layer its experts; None for one feed-forward network.

    Raises:
        BadCheckpoint: a number out of range, or an activation that experts do not have.
    """
    if family.experts is None:
        return [None] * count
    name = "num_local_experts" if "num_local_experts" in fields else "num_experts"
    experts = fields.integer(name, least=0, most=_MAX_EXPERTS)
    if experts is None:
        raise fields.wrong(name, "an integer of at least 0")
    sparse = _sparse_layers(fields, family.experts, count) if experts else [False] * count
    if not any(sparse):
        return [None] * count
    mixture = _mixture(fields, family, family.experts, experts)
    return [mixture if one else None for one in sparse]


def _mixture(fields: Fields, family: Family, rule: Experts, experts: int) -> MixtureOfExperts:
    top_k = fields.required("num_experts_per_tok")
    if top_k > experts:
        raise BadCheckpoint(
            f"{fields.where}: num_experts_per_tok is {top_k}, expected at most the number of "
            f"experts, {experts}"
        )
    activation = fields.values.get(family.activation_field)
    if activation not in ("silu", "swish"):
        raise BadCheckpoint(
            f"{fields.where}: {family.activation_field} is {shown(activation)}, expected silu: "
            "experts with another activation are not supported"
        )
    scaling = fields.number("routed_scaling_factor") if rule.scaled else None
    alpha = fields.number("swiglu_alpha") if rule.clamped else None
    return MixtureOfExperts(
        experts,
        top_k,
        fields.required(rule.size_field),
        scores=rule.scores,
        normalized=_flag(fields, rule.normalized),
        epsilon=rule.epsilon,
        scaling=scaling or 1.0,
        selection_bias=_flag(fields, rule.selection_bias),
        router_bias=rule.biased,
        biases=rule.biased,
        alpha=alpha or 1.0,
        beta=1.0 if rule.clamped else 0.0,
        limit=fields.number("swiglu_limit") if rule.clamped else None,
        shared=(fields.integer(rule.shared_field, least=0) or 0) if rule.shared_field else 0,
        shared_fused=rule.shared_fused,
        shared_gate=rule.shared_gate,
    )


def _sparse_layers(fields: Fields, rule: Experts, count: int) -> list[bool]:
    if rule.layers == "after_dense":
        dense = fields.integer("num_dense_layers", least=0) or 0
        return [layer >= dense for layer in range(count)]
    if rule.layers == "all":
        return [True] * count
    step = fields.required("decoder_sparse_step")
    dense_layers = fields.values.get("mlp_only_layers")
    dense_layers = [] if dense_layers is None else dense_layers
    valid = isinstance(dense_layers, list | tuple) and all(
        isinstance(one, int) and not isinstance(one, bool) for one in dense_layers
    )
    if not valid:
        raise fields.wrong("mlp_only_layers", "a list of the indices of layers")
    return [(layer + 1) % step == 0 and layer not in dense_layers for layer in range(count)]


def _flag(fields: Fields, rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else fields.flag(rule)
