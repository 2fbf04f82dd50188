"""The settings of a draft model."""

import msgspec

from edgelm.compress.ranges import Count

STARTS = 8  # places of a held-out row where drafting starts


class DraftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A student that drafts tokens for its teacher, the target of speculative decoding.

    It has the teacher's tokenizer, embedding and head, which [distill] does not change.

    num_hidden_layers: layers of the teacher that it gets, evenly spaced
    drafted: tokens per step in the report of how many the teacher accepts
    """

    num_hidden_layers: Count = 4
    drafted: Count = 4
