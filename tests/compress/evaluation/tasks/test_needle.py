import re

import pytest

from edgelm.compress.evaluation.tasks.needle import DEPTHS, make_needles, needle
from edgelm.errors import BadInput
from tests.compress.evaluation.scripted import Scripted

CODE = re.compile(r"lighthouse is (\d{4})")


def test_every_depth_at_every_length_up_to_the_context() -> None:
    needles = make_needles(Scripted(context=3000), 3000)
    assert sorted({one.tokens for one in needles}) == [256, 512, 1024, 2048, 2904]
    assert len(needles) == 5 * len(DEPTHS)
    for one in needles:
        assert CODE.findall(one.context) == [one.code]
        assert len(one.context) + 5 <= 3000
        assert one.context.endswith("The secret code of the lighthouse is")
    at = [one.context.index("secret") / len(one.context) for one in needles[-5:]]
    assert at == sorted(at)


def test_a_model_that_finds_the_needle_at_short_lengths_only() -> None:
    def likelihood(context: str, text: str) -> float:
        found = CODE.findall(context)
        return 0.0 if found == [text.strip()] and len(context) < 1000 else -9.0

    found = needle(Scripted(likelihood=likelihood, context=3000), None)
    assert found["accuracy at 512"].mean == 1
    assert found["accuracy at 1024"].mean == 0
    assert found["accuracy"].mean == 2 / 5
    assert len(needle(Scripted(likelihood=likelihood), 3)["accuracy"].sums) == 3


def test_a_context_that_holds_none_is_refused() -> None:
    with pytest.raises(BadInput, match="the context has 128 tokens, needle needs at least 352"):
        needle(Scripted(context=128), None)
