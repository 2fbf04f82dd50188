"""The budget of a student, and the settings of the search."""

import msgspec

from edgelm.compress.ranges import Count, CountOrZero, Share
from edgelm.planning import PlanRequest


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the student may cost; None is no limit.

    parameters: outside the embeddings, as a share of the teacher's, or a number above one.
    request: for the planner: precision, context, prompt, memory, tokens per second.
    first_token_ms: after a prompt of `request.prompt` tokens.
    """

    parameters: float | None = None
    first_token_ms: float | None = None
    request: PlanRequest = PlanRequest()


class SearchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wide and how long to search.

    candidates: shapes that are pruned and scored without training, spread over all kinds.
    finalists: how many of them are distilled. kd_rounds: rounds of distillation, of `round_tokens`
    each; fewer if the ranking has not changed for `patience` rounds. min_ratio: smallest value of
    any size, relative to the teacher's.
    """

    candidates: Count = 24
    finalists: Count = 4
    kd_rounds: CountOrZero = 6
    round_tokens: Count = 50_000
    patience: Count = 2
    held_out_rows: Count = 16
    min_ratio: Share = 0.4
