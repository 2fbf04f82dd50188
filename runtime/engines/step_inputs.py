"""What a graph is given for a step, by role: the same arithmetic for every engine.

Roles, types and shapes are those of `edgelm.bundle.roles`; a graph takes the roles that it has.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.runtime.engines.session import Tokens

StepInputs = dict[str, npt.NDArray[Any]]


def step_inputs(tokens: Tokens, past: int, logits: int) -> StepInputs:
    """The inputs of a step, by role.

    Args:
        tokens: what is appended, int64 [T].
        past: tokens in the cache before it.
        logits: of how many of the last tokens the head computes logits. An output cannot be
            empty: with 0, it computes the logits of the last token.
    """
    count = len(tokens)
    rows = min(max(1, logits), count)
    return {
        "tokens": np.array(tokens, dtype=np.int64)[None],
        "positions": np.arange(past, past + count, dtype=np.int64)[None],
        "past_length": np.array([past], dtype=np.int64),
        "last_position": np.array([past + count - 1], dtype=np.int32),
        "total_length": np.array(past + count, dtype=np.int32),
        "logits_positions": np.arange(count - rows, count, dtype=np.int64),
    }


def batch_inputs(count: int) -> StepInputs:
    """The inputs of a step of one token of each of `count` sequences, by role; zeros."""
    return {
        "tokens": np.zeros((count, 1), dtype=np.int64),
        "positions": np.zeros((count, 1), dtype=np.int64),
        "past_length": np.zeros(count, dtype=np.int64),
        "last_position": np.zeros(count, dtype=np.int32),
        "total_length": np.array(0, dtype=np.int32),
        "logits_positions": np.zeros(1, dtype=np.int64),
    }


def text_inputs(texts: Sequence[Tokens], positions: Sequence[int]) -> StepInputs:
    """The inputs of a run over several texts from their first tokens on, by role.

    All have the length of the longest: behind shorter ones are zeros, which no token of them sees.
    """
    longest = max(map(len, texts))
    tokens = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return {
        "tokens": tokens,
        "positions": np.tile(np.arange(longest, dtype=np.int64), (len(texts), 1)),
        "past_length": np.zeros(len(texts), dtype=np.int64),
        "last_position": np.full(len(texts), longest - 1, dtype=np.int32),
        "total_length": np.array(longest, dtype=np.int32),
        "logits_positions": np.array(positions, dtype=np.int64),
    }


def update_batch(inputs: StepInputs, tokens: Sequence[int], pasts: Sequence[int]) -> None:
    """Change the inputs of `batch_inputs` into those of these tokens, in place."""
    inputs["tokens"][:, 0] = tokens
    inputs["positions"][:, 0] = pasts
    inputs["past_length"][:] = pasts
    inputs["last_position"][:] = pasts
    inputs["total_length"][()] = max(pasts) + 1


def update_step(inputs: StepInputs, token: int, past: int) -> None:
    """Change the inputs of one token into those of another, in place.

    Decoding binds the arrays once: a step then allocates nothing.
    """
    inputs["tokens"][0, 0] = token
    inputs["positions"][0, 0] = past
    inputs["past_length"][0] = past
    inputs["last_position"][0] = past
    inputs["total_length"][()] = past + 1


def update_steps(inputs: StepInputs, tokens: Tokens, past: int) -> None:
    """Change the inputs of several tokens into those of as many others, in place."""
    count = len(tokens)
    inputs["tokens"][0, :] = tokens
    inputs["positions"][0, :] = np.arange(past, past + count, dtype=np.int64)
    inputs["past_length"][0] = past
    inputs["last_position"][0] = past + count - 1
    inputs["total_length"][()] = past + count
