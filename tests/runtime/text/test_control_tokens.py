"""The marks around control tokens in messages."""

import random
from typing import Any

import pytest

from edgelm.runtime.text.control_tokens import ControlTokens

NAMES = ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "[INST]", "aba", "<"]


class Vocabulary:
    """As much of a tokenizer as marking needs."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def added_tokens(self) -> dict[int, Any]:
        class Token:
            def __init__(self, content: str) -> None:
                self.content, self.special = content, True

        return {number: Token(name) for number, name in enumerate(self.names)}


def tokens(names: list[str]) -> ControlTokens:
    vocabulary: Any = Vocabulary(names)
    return ControlTokens(vocabulary, "")


def joins(text: str) -> tuple[bool, bool]:
    """Whether a text ends, and whether it begins, in a part of a control token."""
    bare = text.strip()
    cuts = [(name[:n], name[n:]) for name in NAMES for n in range(1, len(name))]
    return any(bare.endswith(left) for left, _ in cuts), any(
        bare.startswith(right) for _, right in cuts
    )


def test_a_text_that_could_join_with_its_neighbors_has_a_mark_there() -> None:
    rng, control = random.Random(0), tokens(NAMES)
    parts = [*NAMES, *(name[:n] for name in NAMES for n in range(len(name))), " ", "a", "b", "|>"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randrange(5)))
        opens, closes = joins(text)
        marked = control.mark_values(text)
        assert marked.startswith("\ufdd1") is closes
        inner = marked.removeprefix("\ufdd1")
        # After the token "<" itself there is its own closing mark.
        assert inner.endswith("\ufdd0") is opens


@pytest.mark.parametrize("name", ["<|" + "x" * 100 + "|>"])
def test_beside_a_long_token_every_text_has_marks(name: str) -> None:
    assert tokens([name]).mark_values("a") == "\ufdd1a\ufdd0"


def test_thousands_of_texts_and_control_tokens() -> None:
    """Comparing each text with all parts of all tokens would take minutes."""
    control = tokens([f"<unused{number}>" for number in range(6400)])
    assert control.mark_values(["a"] * 20_000) == ["a"] * 20_000
