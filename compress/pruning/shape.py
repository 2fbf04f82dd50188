"""The sizes that pruning changes."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth, with_layers
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.prunable import (
    can_have_mamba_heads,
    fixed_sizes,
    following_mamba_heads,
    lasting_layers,
    mamba_of,
    mixture_of,
    with_experts,
    with_intermediate_size,
    with_mamba_heads,
)

_EXPERTS, _MAMBA = ("num_experts", "moe_intermediate_size"), "mamba_num_heads"
_LACKING = dict.fromkeys(_EXPERTS, "no experts") | {_MAMBA: "no Mamba-2 layers"}


class Shape(msgspec.Struct, frozen=True, order=True, omit_defaults=True):
    """Sizes of a decoder under Hugging Face's names; `head_dim` and vocabulary stay.

    The last three are None, and not written, for a decoder without such parts.

    intermediate_size: neurons that every token runs: of MLPs, or of the shared expert in layers
        that have one.
    num_experts: routed experts of each layer; moe_intermediate_size: neurons of each of them.
    mamba_num_heads: heads of each Mamba-2 layer.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_experts: int | None = None
    moe_intermediate_size: int | None = None
    mamba_num_heads: int | None = None

    @classmethod
    def from_spec(cls, spec: DecoderSpec) -> "Shape":
        """The shape of a decoder."""
        mixture, mamba = mixture_of(spec), mamba_of(spec)
        return cls(
            spec.num_hidden_layers,
            spec.hidden_size,
            (mixture.shared if mixture else 0) or spec.intermediate_size,
            spec.num_attention_heads,
            spec.num_key_value_heads,
            num_experts=mixture.experts if mixture else None,
            moe_intermediate_size=mixture.size if mixture else None,
            mamba_num_heads=mamba.heads if mamba else None,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """All sizes that the decoder has, by name."""
        return {
            field: size for field, size in msgspec.structs.asdict(self).items() if size is not None
        }

    def applied_to(self, spec: DecoderSpec, layers: Sequence[int] | None = None) -> DecoderSpec:
        """The decoder in this shape, for estimates, with these layers if they are known."""
        if layers is None:
            shallow = with_depth(spec, self.num_hidden_layers)
        else:
            shallow = with_layers(spec, layers)
        smaller = with_intermediate_size(shallow, self.intermediate_size)
        if self.num_experts is not None and self.moe_intermediate_size is not None:
            sizes = (self.num_experts, self.moe_intermediate_size, self.intermediate_size)
            smaller = with_experts(smaller, *sizes)
        if self.mamba_num_heads is not None:
            smaller = with_mamba_heads(smaller, self.mamba_num_heads)
        ours = {field: size for field, size in self.sizes.items() if field not in _LACKING}
        return msgspec.structs.replace(smaller, **ours)

    def check_within(self, spec: DecoderSpec) -> None:
        """Raise BadInput unless the decoder can be pruned to this shape."""
        full = Shape.from_spec(spec)
        for field in self.sizes.keys() - full.sizes.keys():
            raise BadInput(f"cannot prune {field} of {spec.family}: it has {_LACKING[field]}")
        for field, theirs in full.sizes.items():
            ours = self.sizes.get(field, theirs)
            if not 1 <= ours <= theirs:
                raise BadInput(
                    f"cannot prune {field} to {ours}; expected 1 to {theirs}, the model's"
                )
        if spec.has_own_sizes:
            raise BadInput(
                "the layers of this model have different sizes ([puzzle] made it), but pruning "
                "removes the same parts from all layers; prune its teacher"
            )
        for field, reason in fixed_sizes(spec).items():
            if getattr(self, field) != getattr(full, field):
                raise BadInput(
                    f"cannot prune {field} of {spec.family}: {reason}; prune "
                    f"{' or '.join(free_sizes(spec))}"
                )
        self._check_depth(spec)
        self._check_mamba(spec)
        groups, per_group = self.num_key_value_heads, self.heads_per_group
        if groups * per_group != self.num_attention_heads:
            raise BadInput(
                f"{self.num_attention_heads} heads do not divide into {groups} KV groups; every "
                "group needs the same number of query heads"
            )
        if FAMILIES[spec.family].derived_heads and not self.fits_heads(spec):
            raise BadInput(
                f"hidden_size {self.hidden_size} is not that of {self.num_attention_heads} heads "
                f"of {spec.head_dim} channels, which transformers requires of {spec.family}; "
                "change one of them"
            )
        if not self.fits_heads(spec):
            raise BadInput(
                f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} "
                f"heads, which transformers requires of {spec.family}; change one of them"
            )
        if not self.fits_groups(spec):
            raise BadInput(
                f"{self.num_attention_heads} heads do not divide into the KV groups of every layer "
                f"of {spec.family}, of which some have more than {groups}; keep more heads"
            )
        limit = spec.num_attention_heads // spec.num_key_value_heads
        if per_group > limit:
            raise BadInput(
                f"{self.num_attention_heads} heads in {groups} KV groups are {per_group} per "
                f"group, the model has {limit}; keep more groups or fewer heads"
            )

    def _check_depth(self, spec: DecoderSpec) -> None:
        lasting = lasting_layers(spec)
        if self.num_hidden_layers < len(lasting):
            raise BadInput(
                f"cannot prune num_hidden_layers of {spec.family} to {self.num_hidden_layers}: "
                f"its layers {', '.join(map(str, lasting))} stay, because others read their keys "
                f"and values or the last layer has no window; keep at least {len(lasting)}"
            )

    def _check_mamba(self, spec: DecoderSpec) -> None:
        """Raise BadInput for heads that groups, or the family's class, cannot have."""
        mamba = mamba_of(spec)
        if mamba is None or self.fits_mamba(spec):
            return
        heads, hidden = self.mamba_num_heads or mamba.heads, self.hidden_size
        if heads % mamba.n_groups:
            raise BadInput(
                f"cannot prune mamba_num_heads to {heads}: the same number of heads in each of "
                f"{mamba.n_groups} groups share B and C; use a multiple of {mamba.n_groups}"
            )
        groups = f", and each of {mamba.n_groups} groups has as many" if mamba.n_groups > 1 else ""
        raise BadInput(
            f"cannot prune {spec.family} to hidden_size {hidden} with {heads} heads of "
            f"{mamba.head_dim} channels in Mamba-2 layers: their class derives the width of "
            f"all heads from the hidden size, as an integer times it (mamba_expand){groups}; use "
            f"{_nearest_mamba(spec, hidden, heads)}"
        )

    def fits_mamba(self, spec: DecoderSpec) -> bool:
        """Whether groups, and the family's class, can have these heads of Mamba-2 layers."""
        mamba = mamba_of(spec)
        if mamba is None:
            return True
        heads = self.mamba_num_heads or mamba.heads
        return can_have_mamba_heads(spec, heads, self.hidden_size)

    def fits_heads(self, spec: DecoderSpec) -> bool:
        """Whether heads divide the hidden size as the family's classes require it."""
        family = FAMILIES[spec.family]
        if family.derived_heads:
            return self.hidden_size == self.num_attention_heads * spec.head_dim
        return not family.even_heads or self.hidden_size % self.num_attention_heads == 0

    def fits_groups(self, spec: DecoderSpec) -> bool:
        """Whether the query heads divide into the key heads of every layer."""
        return all(
            self.num_attention_heads % (layer.num_key_value_heads or self.num_key_value_heads) == 0
            for layer in spec.layers
            if layer.attends
        )

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def __str__(self) -> str:
        text = (
            f"{self.num_hidden_layers} layers, hidden {self.hidden_size}, "
            f"FFN {self.intermediate_size}, heads {self.num_attention_heads}/"
            f"{self.num_key_value_heads}"
        )
        if self.num_experts is not None:
            text += f", {self.num_experts} experts of {self.moe_intermediate_size}"
        return text if self.mamba_num_heads is None else f"{text}, Mamba {self.mamba_num_heads}"


def free_sizes(spec: DecoderSpec) -> list[str]:
    """The sizes that pruning can change."""
    fixed = fixed_sizes(spec)
    return [field for field in Shape.from_spec(spec).sizes if field not in fixed]


def _nearest_mamba(spec: DecoderSpec, hidden_size: int, heads: int) -> str:
    """The numbers of heads nearest to `heads` that fit; without any, the nearest hidden sizes."""
    mamba = mamba_of(spec)
    assert mamba is not None
    fitting = [
        count
        for count in range(1, mamba.heads + 1)
        if can_have_mamba_heads(spec, count, hidden_size)
    ]
    if fitting:
        return f"mamba_num_heads {_around(fitting, heads)}"
    sizes = [size for size in range(1, spec.hidden_size + 1) if following_mamba_heads(spec, size)]
    return f"hidden_size {_around(sizes, hidden_size)}"


def _around(sizes: Sequence[int], size: int) -> str:
    """The nearest sizes below and above one that is not among them."""
    below, above = [one for one in sizes if one < size], [one for one in sizes if one > size]
    return " or ".join(map(str, below[-1:] + above[:1]))


def check_has_block(spec: DecoderSpec, size: int) -> None:
    """Raise BadInput unless a contiguous block of this many layers can be removed."""
    edges = [-1, *lasting_layers(spec), spec.num_hidden_layers]
    longest = max(after - before - 1 for before, after in pairwise(edges))
    if size > longest:
        raise BadInput(
            f'[importance] layers = "block" cannot remove {size} layers of {spec.family}: layers '
            f"{', '.join(map(str, edges[1:-1]))} stay, with at most {longest} between two of them; "
            'prune fewer, or set layers = "block_influence" or "loss"'
        )
