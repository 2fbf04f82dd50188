"""Generation on a tiny exported model, against transformers."""

from typing import Any

import numpy as np
import pytest
import torch

from edgelm.errors import BadInput, ContextFull
from edgelm.runtime import Chunk, LanguageModel
from edgelm.runtime.engines.session import Tokens
from tests.checkpoints.tiny_chat import CONTEXT, VOCAB

END = 3
PROMPTS = {
    "one token": [40],
    "short": [85, 120, 33],
    "long": np.random.default_rng(1).integers(4, VOCAB, 60).tolist(),
}


def tokens(ids: list[int]) -> Tokens:
    return np.array(ids, dtype=np.int64)


def greedy(hf: Any, ids: list[int], **options: Any) -> list[int]:
    out = hf.generate(
        torch.tensor([ids]), do_sample=False, eos_token_id=[2, END], pad_token_id=0, **options
    )
    answer: list[int] = out[0, len(ids) :].tolist()
    return answer


def answer(lm: LanguageModel, ids: list[int], **options: Any) -> list[int]:
    chunks = lm.stream(tokens(ids), **options)
    return [chunk.token for chunk in chunks if chunk.token is not None]


@pytest.mark.parametrize("ids", PROMPTS.values(), ids=PROMPTS)
def test_greedy_equals_transformers(lm: LanguageModel, hf: Any, ids: list[int]) -> None:
    expected = greedy(hf, ids, max_new_tokens=50)
    assert len(set(expected)) > 5, "a model that repeats itself proves little"
    assert answer(lm, ids, max_tokens=50) == expected


def test_an_answer_that_ends_by_itself_equals_transformers(lm: LanguageModel, hf: Any) -> None:
    expected = greedy(hf, [40, 41], max_new_tokens=CONTEXT)
    assert expected[-1] in lm.eos_token_ids
    assert answer(lm, [40, 41]) == expected


def test_greedy_with_a_penalty_equals_transformers(lm: LanguageModel, hf: Any) -> None:
    ids = PROMPTS["short"]
    expected = greedy(hf, ids, max_new_tokens=40, repetition_penalty=1.5)
    assert expected != greedy(hf, ids, max_new_tokens=40)
    assert answer(lm, ids, max_tokens=40, repetition_penalty=1.5) == expected


def test_log_probabilities_equal_transformers(lm: LanguageModel, hf: Any) -> None:
    ids = PROMPTS["long"]
    chunks = list(lm.stream(tokens(ids), max_tokens=12, logprobs=3))
    said = [chunk.token for chunk in chunks if chunk.token is not None]
    with torch.inference_mode():
        logits = hf(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1)
    assert len(chunks) == 13
    for chunk, row in zip(chunks, expected, strict=False):
        best = torch.topk(row, 3)
        assert chunk.logprob == pytest.approx(row.max().item(), abs=1e-4)
        assert [score.token for score in chunk.top_logprobs] == best.indices.tolist()
        assert [score.logprob for score in chunk.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
    assert chunks[-1].logprob is None


def test_log_probabilities_are_the_model_s_not_the_sampler_s(lm: LanguageModel) -> None:
    def first(**options: Any) -> Chunk:
        return next(lm.stream(tokens([40]), logprobs=1, **options))

    plain = first()
    assert plain.top_logprobs[0].token == plain.token
    assert plain.top_logprobs[0].logprob == plain.logprob
    forbidden = first(logit_bias={plain.token or 0: -np.inf})
    assert forbidden.token != plain.token
    assert forbidden.top_logprobs == plain.top_logprobs
    hot = first(temperature=1e-6, seed=0)
    assert hot.logprob == plain.logprob


def test_log_probabilities_of_zero_others(lm: LanguageModel) -> None:
    chunk = next(lm.stream(tokens([40]), logprobs=0))
    assert chunk.logprob is not None
    assert chunk.top_logprobs == ()
    silent = next(lm.stream(tokens([40])))
    assert (silent.logprob, silent.top_logprobs) == (None, ())


def test_max_new_tokens_is_another_name(lm: LanguageModel) -> None:
    assert len(answer(lm, [40, 41], max_new_tokens=3)) == 3
    assert len(answer(lm, [40, 41], max_new_tokens=3, max_tokens=3)) == 3
    assert len(answer(lm, [40, 41], max_new_tokens=None, max_tokens=3)) == 3


def test_sampling_is_reproducible_and_heeds_its_seed(lm: LanguageModel) -> None:
    def sample(seed: int) -> list[int]:
        return answer(lm, [40, 41], max_tokens=20, temperature=1.5, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_top_1_is_greedy(lm: LanguageModel) -> None:
    expected = answer(lm, [40, 41], max_tokens=20)
    assert answer(lm, [40, 41], max_tokens=20, temperature=2.0, top_k=1) == expected


def test_frequency_penalty_counts_the_answer_only(lm: LanguageModel) -> None:
    ids = PROMPTS["short"]
    favoured = {ids[0]: 50.0}
    # The prompt's own use of the token costs nothing; each later use costs 2.
    said = answer(lm, ids, max_tokens=8, logit_bias=favoured, frequency_penalty=2.0)
    assert said == [ids[0]] * 8
    said = answer(lm, ids, max_tokens=8, logit_bias=favoured, repetition_penalty=100.0)
    assert ids[0] not in said


REFUSED: dict[str, tuple[list[int], dict[str, Any], type[Exception], str]] = {
    "empty": ([], {}, BadInput, "the prompt is empty; expected at least one token"),
    "too long": (
        [5] * (CONTEXT + 1),
        {},
        ContextFull,
        f"the prompt has {CONTEXT + 1} tokens, the context holds {CONTEXT}; shorten it",
    ),
    "no tokens": ([5], {"max_tokens": 0}, BadInput, "max_tokens is 0, expected at least 1"),
    "negative": ([5], {"max_tokens": -3}, BadInput, "max_tokens is -3"),
    "two limits": (
        [5],
        {"max_tokens": 3, "max_new_tokens": 4},
        BadInput,
        "max_tokens is 3 and max_new_tokens 4; they are two names of one limit",
    ),
    "scores": (
        [5],
        {"logprobs": -1},
        BadInput,
        "logprobs is -1, expected at least 0",
    ),
    "sampling": ([5], {"temperature": -1.0}, BadInput, "temperature is -1.0"),
    "bias": (
        [5],
        {"logit_bias": {VOCAB: 1.0}},
        BadInput,
        f"token {VOCAB}, the vocabulary has {VOCAB}",
    ),
    "unknown option": (
        [5],
        {"max_length": 5},
        BadInput,
        "unknown option 'max_length'; known: max_tokens, max_new_tokens, ",
    ),
    "token beyond the vocabulary": ([5, VOCAB], {}, BadInput, f"token {VOCAB}"),
    "negative token": ([-1, 5], {}, BadInput, "token -1"),
}


@pytest.mark.parametrize(("ids", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_requests_that_cannot_start(
    lm: LanguageModel, ids: list[int], options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lm.stream(tokens(ids), **options)  # at once, not when the iterator is first asked


def test_a_refused_request_leaves_the_model_usable(lm: LanguageModel) -> None:
    expected = answer(lm, [40, 41], max_tokens=5)
    with pytest.raises(ContextFull):
        lm.stream(tokens([5] * (CONTEXT + 1)))
    assert answer(lm, [40, 41], max_tokens=5) == expected
