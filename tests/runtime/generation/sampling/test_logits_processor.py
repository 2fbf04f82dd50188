"""A caller's processors: what they see, what they may do, and when they are told a token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.sampling.logits_processor import LogitsProcessor, Row

PROMPT = [40, 41, 42]


def only(token: int) -> LogitsProcessor:
    def keep(_: Sequence[int], logits: Row) -> Row:
        value = logits[token]
        logits[:] = -np.inf
        logits[token] = value
        return logits

    return keep


class Recorder:
    """Forces 7, 8, 9, ..., and notes the order of calls."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.next = 7

    def __call__(self, history: Sequence[int], logits: Row) -> Row:
        self.calls.append(list(history))
        return only(self.next)(history, logits)

    def advance(self, token: int) -> None:
        self.calls.append(token)
        self.next = token + 1


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "top_p": 0.5, "seed": 1}, {"repetition_penalty": 3.0}]
)
def test_an_advancing_processor_by_turns(lm: LanguageModel, sampling: dict[str, float]) -> None:
    recorder = Recorder()
    chunks = list(
        lm.stream(PROMPT, max_tokens=3, logits_processors=[recorder], **sampling)  # type: ignore[arg-type]
    )
    assert [chunk.token for chunk in chunks if chunk.token is not None] == [7, 8, 9]
    assert recorder.calls == [PROMPT, 7, [*PROMPT, 7], 8, [*PROMPT, 7, 8], 9]


@pytest.mark.parametrize("draft", ["off", "lookup"])
def test_a_processor_that_writes_into_the_history(lm: LanguageModel, draft: str) -> None:
    def rewrite(history: list[int], logits: Row) -> Row:
        history[0] = 5
        history.append(7)
        return logits

    seen: list[list[int]] = []

    def look(history: Sequence[int], logits: Row) -> Row:
        seen.append(list(history))
        return logits

    def generate(*processors: LogitsProcessor) -> list[int]:
        options: Any = {"repetition_penalty": 1.3, "speculation": draft}
        return lm.generate(PROMPT, max_tokens=12, logits_processors=processors, **options).tokens

    expected = generate()
    assert generate(rewrite, look) == expected  # type: ignore[arg-type]
    assert seen == [[*PROMPT, *expected[:n]] for n in range(len(seen))]
    assert len(seen) > 2


def test_logprobs_are_the_models_own(lm: LanguageModel) -> None:
    free = next(lm.stream(PROMPT, logprobs=5))
    forced = next(lm.stream(PROMPT, logprobs=5, logits_processors=[only(7)]))
    assert forced.token == 7
    assert max(one.logprob for one in forced.top_logprobs) > (forced.logprob or 0)
    assert [one.token for one in forced.top_logprobs] == [one.token for one in free.top_logprobs]


def test_processors_run_in_order_and_before_the_bias(lm: LanguageModel) -> None:
    chunks = lm.stream(
        PROMPT, logits_processors=[only(7), only(8)], max_tokens=1, logit_bias={8: 5}
    )
    with pytest.raises(BadInput, match=r"forbids every token|leave no token"):
        next(chunks)


@pytest.mark.parametrize("given", [only(3), [3], "abc"], ids=["bare", "number", "text"])
def test_what_is_no_list_of_functions(lm: LanguageModel, given: object) -> None:
    with pytest.raises(BadInput, match="expected a list of functions"):
        lm.stream(PROMPT, logits_processors=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.float16])
def test_a_processor_that_returns_numbers_of_another_type(lm: LanguageModel, kind: type) -> None:
    def change(_: Sequence[int], logits: Row) -> Row:
        changed: Row = (1000 * (np.arange(len(logits)) == 7)).astype(kind)
        return changed

    options: Any = {"logit_bias": {3: 1.5}, "repetition_penalty": 1.5, "frequency_penalty": 0.5}
    done = lm.generate(PROMPT, max_tokens=2, logits_processors=[change], **options)
    assert done.tokens == [7, 7]


def test_a_processor_that_returns_nothing(lm: LanguageModel) -> None:
    chunks = lm.stream(PROMPT, logits_processors=[lambda _, row: None])  # type: ignore[list-item,return-value]
    with pytest.raises(BadInput, match="returned NoneType, expected the logits"):
        next(chunks)


@pytest.mark.parametrize(
    "returned", [np.zeros(3), np.zeros((1, 3)), np.zeros(3, dtype=bool), np.array(["a"])], ids=repr
)
def test_a_processor_that_returns_another_array(lm: LanguageModel, returned: Any) -> None:
    def change(_: Sequence[int], logits: Row) -> Row:
        row: Row = np.resize(returned, len(logits)) if returned.dtype == bool else returned
        return row

    with pytest.raises(BadInput, match=r"returned an array \[.*\] of .*, expected the logits"):
        lm.generate(PROMPT, max_tokens=1, logits_processors=[change])
