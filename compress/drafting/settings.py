"""The settings of a draft model."""

from typing import Literal

import msgspec

from edgelm.compress.ranges import Count

CALIBRATION_ROWS = 64  # of text, by which the target is quantized
_STARTS = 8


class DraftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A student that drafts tokens for its teacher, the target of speculative decoding.

    It has the teacher's tokenizer, embedding and head, which [distill] does not change.

    num_hidden_layers: layers of the teacher that it gets, evenly spaced
    drafted: tokens per step in the report of how many the teacher accepts
    precision: of the bundle that it will draft for: it learns what the teacher predicts with
        weights on that grid; by default with its own weights
    group_size: weights per scale of that bundle; by default as in [qad]
    prompts: JSONL file of prompts or conversations, on whose greedy answers the acceptance is
        reported as well
    answer_tokens: maximum tokens of such an answer
    """

    num_hidden_layers: Count = 4
    drafted: Count = 4
    precision: Literal["int4", "int8"] | None = None
    group_size: Count | None = None
    prompts: str = ""
    answer_tokens: Count = 64


def starts(length: int, drafted: int, first: int = 0) -> list[int]:
    """Up to eight places of a row where drafting starts, behind `first` tokens, spread evenly."""
    last = max(1, length - drafted)
    first = min(first, last - 1)
    places = range(1, _STARTS + 1)
    return sorted({max(1, first + (last - first) * place // _STARTS) for place in places})


def positions(length: int, drafted: int, *, rereads: bool) -> tuple[int, int]:
    """About how many positions of a row the draft and its target compute, for both figures.

    `rereads`: the model reads the text again for each run; others keep it in their cache.
    """
    places = starts(length, drafted)
    if not rereads:
        count = 2 * length + len(places) * drafted
        return count, count
    ours = sum(drafted * place + drafted * (drafted - 1) // 2 for place in places)
    return length + ours, length + sum(place + drafted for place in places)
