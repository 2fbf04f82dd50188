"""A hundred greedy tokens of the fp32 graph are those of Transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.checkpoints.models import TINY
from tests.conftest import TinyFactory
from tests.export.graphs import build_session
from tests.slow import slow_but

PROMPT = [int(token) for token in np.arange(5, 17) * 7 % 120 + 3]
TOKENS, CONTEXT = 100, 128  # windows of 8 and 16 have passed many times
RECENT = 8


def greedy(logits: Callable[[list[int]], npt.NDArray[np.float32]]) -> list[int]:
    """The best tokens that are not among the last ones, which a random model would repeat.

    `logits` are those after a prompt, or after one more token of the text.
    """
    text = list(PROMPT)
    while len(text) < len(PROMPT) + TOKENS:
        last = logits(text).copy()
        last[text[-RECENT:]] = -np.inf
        text.append(int(last.argmax()))
    return text


@pytest.mark.parametrize("name", slow_but(sorted(TINY), ("llama", "gemma3", "qwen3.5")))
def test_greedy_text(calm: TinyFactory, tmp_path: Path, name: str) -> None:
    source = calm(name)

    def theirs(text: list[int]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = (
                source.hf(torch.tensor([text]), use_cache=False).logits[0, -1].numpy()
            )
        return logits

    with build_session(source.checkpoint, tmp_path, context=CONTEXT) as session:

        def ours(text: list[int]) -> npt.NDArray[np.float32]:
            logits: npt.NDArray[np.float32] = session.advance(np.array(text[session.length :]))
            return logits[-1]  # type: ignore[no-any-return]

        found = greedy(ours)
    assert found == greedy(theirs)
    assert len(set(found)) > 2 * RECENT
