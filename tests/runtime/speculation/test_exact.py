"""An answer is the same with and without speculation, whatever else it is composed of."""

import json
from typing import Any

import numpy as np
import pytest

from edgelm.runtime import LanguageModel, Reply
from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.speculation import SpeculationMode

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def prompt(seed: int) -> list[int]:
    """Tokens with a part that occurs again, and its beginning once more."""
    rng = np.random.default_rng(seed)
    part = rng.integers(4, 320, 25).tolist()
    return [*rng.integers(4, 320, 10).tolist(), *part, 17, *part, 40, *part[:6]]


def forget(lm: LanguageModel) -> None:
    """Make the next prompt run from its first token: behind a cached beginning it is rounded
    otherwise, with and without speculation."""
    for slot in lm._sequences.slots:
        slot.session.rewind(0)


def answer(lm: LanguageModel, mode: SpeculationMode, tokens: list[int], **options: Any) -> Reply:
    forget(lm)
    return lm.generate(tokens, speculation=mode, **{"max_tokens": 60, **options})


def copies(history: Any, row: Row) -> Row:
    """A processor that makes any model repeat what followed the last two tokens before."""
    end = [int(token) for token in history[-2:]]
    for at in range(len(history) - 3, 1, -1):
        if [int(token) for token in history[at - 2 : at]] == end and len(history) % 7:
            row[int(history[at])] = row.max() + 5
            break
    return row


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": {"logprobs": 3},
    "sampled": {"temperature": 0.8, "seed": 3},
    "truncated": {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 4},
    "typical": {"temperature": 1.0, "typical_p": 0.9, "seed": 5},
    "penalties": {
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "temperature": 0.7,
        "seed": 6,
    },
    "bias": {"logit_bias": {17: 2.0, 40: -1.0}},
    "stop string": {"stop": ["e", "th"]},
    "stop token": {"stop_tokens": [17, 40, 99]},
    "few tokens": {"max_tokens": 5},
    "json": {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "json sampled": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        "temperature": 1.0,
        "seed": 7,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("copied", [False, True], ids=["own", "copying"])
def test_the_same_answer(int8_lm: LanguageModel, options: dict[str, Any], copied: bool) -> None:
    processors = [copies] if copied else []
    for seed in range(2):
        tokens = prompt(seed)
        plain = answer(int8_lm, "off", tokens, logits_processors=processors, **options)
        drafted = answer(int8_lm, "auto", tokens, logits_processors=processors, **options)
        assert drafted.chunks == plain.chunks
        assert drafted.usage == plain.usage
        assert plain.timings.drafted == 0


def test_copying_is_drafted_and_accepted(int8_lm: LanguageModel) -> None:
    drafted = accepted = 0
    for seed in range(4):
        reply = answer(int8_lm, "lookup", prompt(seed), logits_processors=[copies])
        drafted += reply.timings.drafted
        accepted += reply.timings.accepted
        assert reply.timings.decoded == len(reply.tokens) - 1
    assert 0 < accepted <= drafted


def test_an_extraction_is_drafted_from_the_text_of_the_prompt(int8_lm: LanguageModel) -> None:
    """The answer is a given one; logits are compared as well."""
    answers = [
        [{"name": "Ann Lee", "town": "Oslo"}, {"name": "Bo Sand", "town": "Luleå"}],
        [{"name": "Жан", "town": "Rome"}, {"name": "Cy Ray", "town": "Bern"}],
    ]
    for expected in answers:
        listed = ". ".join(f"{one['name']} lives in {one['town']}" for one in expected)
        tokens = int8_lm.tokenizer.encode(f"Name and town: {listed}.\n").tolist()
        said = int8_lm.tokenizer.encode(json.dumps(expected, ensure_ascii=False), special=False)
        options: dict[str, Any] = {"max_tokens": len(said), "logprobs": 0}
        replies = {}
        for mode in ("off", "auto"):
            dictated = Dictated(said.tolist(), len(tokens))
            replies[mode] = answer(int8_lm, mode, tokens, logits_processors=[dictated], **options)
        assert json.loads(replies["auto"].text) == expected
        assert replies["auto"].chunks == replies["off"].chunks
        if int8_lm._sequences.speculation.exactness.exact:
            # The second record, and more.
            assert replies["auto"].timings.accepted > 0.5 * len(said)


def test_the_keys_of_a_schema_are_drafted(int8_lm: LanguageModel) -> None:
    """The prompt has none of them, and random weights choose values and white space."""
    long = {f"a_long_name_of_field_{number}": {"type": "boolean"} for number in range(3)}
    schema = {**SCHEMA, "properties": long, "required": list(long)}
    options: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "max_tokens": 200,
    }
    tokens = int8_lm.tokenizer.encode("Yes?").tolist()
    plain, drafted = (answer(int8_lm, mode, tokens, **options) for mode in ("off", "auto"))
    assert drafted.chunks == plain.chunks
    assert "a_long_name_of_field_0" in drafted.text
    if int8_lm._sequences.speculation.exactness.exact:
        assert drafted.timings.accepted > 15


def test_at_the_end_of_the_context(int8_lm: LanguageModel) -> None:
    tokens = (prompt(1) * 10)[: int8_lm.context - 30]
    options: dict[str, Any] = {
        "max_tokens": None,
        "logits_processors": [copies],
        "logit_bias": dict.fromkeys(int8_lm.eos_token_ids, -100.0),
    }
    plain = answer(int8_lm, "off", tokens, **options)
    drafted = answer(int8_lm, "auto", tokens, **options)
    assert plain.stop_reason == "context"
    assert drafted.chunks == plain.chunks


def test_two_generations_by_turns(int8_lm: LanguageModel) -> None:
    alone = [
        answer(int8_lm, "off", prompt(seed), logits_processors=[copies]).tokens for seed in (1, 2)
    ]
    forget(int8_lm)
    streams = [
        int8_lm.stream(prompt(seed), speculation="auto", max_tokens=60, logits_processors=[copies])
        for seed in (1, 2)
    ]
    together: list[list[int | None]] = [[], []]
    for _ in range(60):
        for tokens, stream in zip(together, streams, strict=True):
            tokens.append(next(stream).token)
    for stream in streams:
        stream.close()
    assert together == alone


class Dictated:
    """A logits processor that makes the answer a given one, so that logits can be compared."""

    def __init__(self, tokens: list[int], start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, history: Any, row: Row) -> Row:
        row[self._tokens[len(history) - self._start]] = row.max() + 1
        return row


def test_three_generations_share_two_sequences(int8_lm: LanguageModel) -> None:
    """A sequence is taken from its generation in the middle of a checked draft."""
    said = (prompt(1)[10:] * 2)[:60]
    dictated = Dictated(said, len(prompt(1)))
    plain = answer(int8_lm, "off", prompt(1), logits_processors=[dictated], logprobs=0).logprobs
    stream = int8_lm.stream(
        prompt(1), speculation="lookup", max_tokens=60, logits_processors=[dictated], logprobs=0
    )
    found = []
    for count, chunk in enumerate(stream):
        found.append(chunk)
        if count % 9 == 5:
            others = [int8_lm.stream(prompt(n), max_tokens=2, speculation="off") for n in (5, 6)]
            for other in others:
                next(other)
            for other in others:
                other.close()
    assert stream.reply.timings.accepted > 5
    assert plain is not None
    ours = np.array([chunk.logprob for chunk in found if chunk.token is not None])
    # Tokens that are computed again are rounded otherwise; a wrong state would change all.
    np.testing.assert_allclose(ours, [one.logprob for one in plain], rtol=0, atol=0.5)


def test_what_was_drafted_wrongly_is_not_taken_for_what_was_said(int8_lm: LanguageModel) -> None:
    reply = answer(int8_lm, "lookup", prompt(3), logits_processors=[copies], max_tokens=20)
    said = [*prompt(3), *reply.tokens]
    held, state = int8_lm.snapshot(said)
    assert held == said[: len(held)]
    assert len(held) >= len(said) - 1
    assert all(array.dtype.kind in "if" for array in state)
