"""The settings of a draft model."""

import msgspec

from edgelm.compress.ranges import Count


class DraftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A student that drafts tokens for its teacher, the target of speculative decoding.

    It has `num_hidden_layers` of the teacher's layers, evenly spaced, and the teacher's tokenizer,
    embedding and head, which [distill] does not change. `drafted`: tokens per step in the report
    of how many the target accepts.
    """

    num_hidden_layers: Count = 4
    drafted: Count = 4
