"""The five sizes that pruning changes."""

import msgspec

from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth
from edgelm.spec.families.table import FAMILIES


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

    def applied_to(self, spec: DecoderSpec) -> DecoderSpec:
        """The decoder in this shape with its first layers, which is enough for estimates."""
        sizes = msgspec.structs.asdict(self)
        return msgspec.structs.replace(with_depth(spec, self.num_hidden_layers), **sizes)

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
        if spec.entangles_layers:
            raise BadInput(
                f"cannot prune {spec.family}: its layers are not built alike (they have different "
                "heads, shared keys and values, additional inputs or only one sublayer)"
            )
        if spec.is_hybrid and self.hidden_size != spec.hidden_size:
            raise BadInput(
                f"cannot prune hidden_size of {spec.family}: its other layers are as wide as the "
                "residual stream; prune num_hidden_layers, intermediate_size or attention heads"
            )
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
        limit = spec.num_attention_heads // spec.num_key_value_heads
        if per_group > limit:
            raise BadInput(
                f"{self.num_attention_heads} heads in {groups} KV groups are {per_group} per "
                f"group, the model has {limit}; keep more groups or fewer heads"
            )

    def fits_heads(self, spec: DecoderSpec) -> bool:
        """Whether heads divide the hidden size as the family's classes require it."""
        family = FAMILIES[spec.family]
        if family.derived_heads:
            return self.hidden_size == self.num_attention_heads * spec.head_dim
        return not family.even_heads or self.hidden_size % self.num_attention_heads == 0

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
