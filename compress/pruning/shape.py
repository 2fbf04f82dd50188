"""The five sizes that pruning changes."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth, with_layers
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.prunable import fixed_sizes, lasting_layers, with_intermediate_size


class Shape(msgspec.Struct, frozen=True, order=True):
    """Sizes of a decoder under Hugging Face's names; `head_dim` and vocabulary stay."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int

    @classmethod
    def from_spec(cls, spec: DecoderSpec) -> "Shape":
        """The shape of a decoder."""
        return cls(**{field: getattr(spec, field) for field in cls.__struct_fields__})

    def applied_to(self, spec: DecoderSpec, layers: Sequence[int] | None = None) -> DecoderSpec:
        """The decoder in this shape, for estimates, with these layers if they are known."""
        if layers is None:
            shallow = with_depth(spec, self.num_hidden_layers)
        else:
            shallow = with_layers(spec, layers)
        narrower = with_intermediate_size(shallow, self.intermediate_size)
        return msgspec.structs.replace(narrower, **msgspec.structs.asdict(self))

    def check_within(self, spec: DecoderSpec) -> None:
        """Raise BadInput unless the decoder can be pruned to this shape."""
        for field in self.__struct_fields__:
            ours, theirs = getattr(self, field), getattr(spec, field)
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
            if getattr(self, field) != getattr(spec, field):
                raise BadInput(
                    f"cannot prune {field} of {spec.family}: {reason}; prune "
                    f"{' or '.join(free_sizes(spec))}"
                )
        self._check_depth(spec)
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
        return (
            f"{self.num_hidden_layers} layers, hidden {self.hidden_size}, "
            f"FFN {self.intermediate_size}, heads {self.num_attention_heads}/"
            f"{self.num_key_value_heads}"
        )


def free_sizes(spec: DecoderSpec) -> list[str]:
    """The sizes that pruning can change."""
    fixed = fixed_sizes(spec)
    return [field for field in Shape.__struct_fields__ if field not in fixed]


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
