"""Answers of random parts: however they are cut into chunks, the result is the same."""

import random

import pytest

from edgelm.runtime.text.answers.formats import AnswerFormat, answer_format
from edgelm.runtime.text.answers.parser import AnswerParser
from tests.runtime.text.answers.test_parser import (
    CALL,
    CODER,
    GEMMA4,
    GLM,
    GPT_OSS,
    GRANITE,
    HERMES,
    LFM2,
    LLAMA3,
    MISTRAL,
    TOOLS,
    parse,
)

TEMPLATES = [HERMES, CODER, GLM, LLAMA3, MISTRAL, GEMMA4, LFM2, GRANITE, GPT_OSS]


def random_answer(chosen: AnswerFormat, rng: random.Random) -> str:
    """Tags, halves of tags, calls and text, in any order."""
    tags = [tag for pair in chosen.calls.tags for tag in (pair.begin, pair.end) if tag]
    if chosen.reasoning is not None:
        tags += [chosen.reasoning.begin, chosen.reasoning.end]
    tags += chosen.hidden
    parts = []
    for _ in range(rng.randint(1, 8)):
        tag = rng.choice(tags)
        parts.append(
            rng.choice(
                [tag, tag, tag[: len(tag) // 2], tag[1:], CALL, " ", "\n\n", "text", "{", "<"]
            )
        )
    return "".join(parts)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda text: answer_format(text).name)
def test_chunks_do_not_matter(template: str) -> None:
    chosen = answer_format(template)
    rng = random.Random(template)
    for _ in range(150):
        text = random_answer(chosen, rng)
        whole = parse(AnswerParser(chosen, TOOLS), [text])
        assert parse(AnswerParser(chosen, TOOLS), text) == whole, text
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parse(AnswerParser(chosen, TOOLS), pieces) == whole, (text, pieces)
