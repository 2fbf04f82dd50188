"""How much text tiny exports of tests run, and how much they answer: most of what they cost."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgelm.export import calibration
from edgelm.export.gate import measure, prompts
from edgelm.export.source.text import affordable


@contextmanager
def sequences(most: int | None) -> Iterator[None]:
    """In this block exports run at most so many sequences of a text; None: as many as usual."""
    chosen = affordable if most is None else lambda *_: most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "affordable", chosen)
        yield


@contextmanager
def decoded(tokens: int) -> Iterator[None]:
    """In this block the gate decodes that many tokens of each sequence one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_TAIL", tokens)
        yield


@contextmanager
def short_gate() -> Iterator[None]:
    """In this block the gate asks 2 prompts in place of 24, for at most 8 tokens each.

    Of each sequence of its text it decodes 16 tokens in place of 64 one by one.
    """
    with decoded(16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "PROMPTS", prompts.PROMPTS[:2])
        patch.setattr(prompts, "MAX_TOKENS", 8)
        yield
