"""Why a generation ends, and what its last chunk says."""

from typing import Any

import numpy as np
import pytest

from edgelm.runtime import Chunk, LanguageModel, Reply
from tests.checkpoints.tiny_chat import CONTEXT

END = 3
PROMPT = np.array([40, 41], dtype=np.int64)


def complete(lm: LanguageModel, **options: Any) -> Reply:
    stream = lm.stream(PROMPT, **options)
    chunks = tuple(stream)
    assert [chunk.stop_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert stream.reply.chunks == chunks
    return stream.reply


def decoded(lm: LanguageModel, tokens: list[int]) -> str:
    return lm.tokenizer.decode(tokens)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_length(lm: LanguageModel, count: int) -> None:
    done = complete(lm, max_tokens=count)
    assert (done.finish_reason, done.stop_reason) == ("length", "max_tokens")
    assert len(done.tokens) == count
    assert done.text == decoded(lm, done.tokens)
    assert done.chunks[-1].token is None


def test_end_of_sequence_is_a_token_without_text(lm: LanguageModel) -> None:
    # A token that is both is reported as the model's own end.
    done = complete(lm, max_tokens=5, stop_tokens=[END], logit_bias={END: 1000.0})
    assert (done.finish_reason, done.stop_reason) == ("stop", "eos_token")
    assert done.tokens == [END]
    assert done.chunks[-1].stop == END
    assert done.text == ""


def test_end_of_sequence_after_an_answer(lm: LanguageModel) -> None:
    done = complete(lm)
    assert (done.finish_reason, done.stop_reason) == ("stop", "eos_token")
    assert done.tokens[-1] in lm.eos_token_ids
    assert len(done.tokens) > 3
    assert done.text == decoded(lm, done.tokens[:-1])


@pytest.mark.parametrize("at", [0, 3])
def test_stop_tokens(lm: LanguageModel, at: int) -> None:
    free = complete(lm, max_tokens=8).tokens
    first = free.index(free[at])
    done = complete(lm, max_tokens=8, stop_tokens=[free[at]])
    assert (done.finish_reason, done.stop_reason) == ("stop", "stop_token")
    assert done.tokens == free[: first + 1]
    assert done.chunks[-1].stop == free[at]
    assert done.text == decoded(lm, free[:first])


def test_stop_strings_over_several_tokens(lm: LanguageModel) -> None:
    free = complete(lm, max_tokens=30)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    before = free.text.index(stop)
    done = complete(lm, max_tokens=30, stop=stop)
    assert (done.finish_reason, done.stop_reason) == ("stop", "stop_string")
    assert done.chunks[-1].stop == stop
    assert done.text == free.text[:before]


def test_the_earliest_of_several_stops_wins(lm: LanguageModel) -> None:
    free = complete(lm, max_tokens=30).text
    late, early = free[12:15], free[6:9]
    assert free.index(early) < free.index(late)
    done = complete(lm, max_tokens=30, stop=[late, early])
    assert done.chunks[-1].stop == early
    assert done.text == free[: free.index(early)]


def test_text_held_back_for_a_stop_comes_at_the_end(lm: LanguageModel) -> None:
    free = complete(lm, max_tokens=10)
    done = complete(lm, max_tokens=10, stop=free.text[-2:] + "never")
    assert done.finish_reason == "length"
    assert done.text == free.text
    assert done.chunks[-1].text.endswith(free.text[-2:])


def test_a_full_context(lm: LanguageModel) -> None:
    done = complete(lm, logit_bias=dict.fromkeys(lm.eos_token_ids, -np.inf))
    assert (done.finish_reason, done.stop_reason) == ("length", "context")
    assert lm.session.length == CONTEXT
    # Every token but the last was read by the model; the last is what it says after CONTEXT.
    assert len(PROMPT) + len(done.tokens) - 1 == CONTEXT
    assert done.text == decoded(lm, done.tokens)


def test_a_prompt_as_long_as_the_context_gets_one_token(lm: LanguageModel) -> None:
    chunks = list(lm.stream(np.full(CONTEXT, 40, dtype=np.int64)))
    assert [chunk.token is not None for chunk in chunks] == [True, False]
    assert chunks[-1].stop_reason == "context"


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cancel_is_asked_before_every_step(lm: LanguageModel, steps: int) -> None:
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps

    done = complete(lm, max_tokens=50, cancel=cancel)
    assert done.finish_reason == "cancelled"
    assert len(done.tokens) == steps
    assert done.text == decoded(lm, done.tokens)


def test_half_a_character_at_the_end_is_shown_as_such(lm: LanguageModel) -> None:
    # 🙂 is four tokens, of which the length leaves room for one.
    first = int(lm.tokenizer.encode("🙂")[0])
    done = complete(lm, max_tokens=1, logit_bias={first: 1000.0})
    assert [chunk.text for chunk in done.chunks] == ["", "\ufffd"]


def test_abandoned_iterators_do_not_disturb_the_next(lm: LanguageModel) -> None:
    expected = complete(lm, max_tokens=10).tokens
    chunks = lm.stream(PROMPT)
    assert isinstance(next(chunks), Chunk)
    next(chunks)
    assert complete(lm, max_tokens=10).tokens == expected
