"""Log-likelihoods against the logits of transformers, one unpadded row at a time."""

import random
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from edgelm.compress.evaluation import likelihood
from edgelm.compress.evaluation.backend import Continuation
from edgelm.compress.evaluation.encoding import encode_pair
from edgelm.compress.evaluation.likelihood import continuations
from edgelm.errors import BadInput
from tests.compress.bigram import bigram, chain
from tests.conftest import TinyFactory

Pair = tuple[list[int], list[int]]
# Soft cap, divisor, sliding windows, partial RoPE, tied and untied heads.
FAMILIES = ["llama", "llama-untied", "mistral", "granite", "gemma2", "gemma3", "phi3-partial"]
EDGE = 128  # the tiny models' longest sequence


def _pairs(count: int = 9) -> list[Pair]:
    """Lengths from 1 token of context on, in no order."""
    rng = random.Random(5)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(3, 128) for _ in range(length)]

    return [(tokens(rng.randint(1, 30)), tokens(rng.randint(1, 6))) for _ in range(count)]


def _reference(model: Any, pair: Pair) -> Continuation:
    context, continuation = pair
    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation]]), use_cache=False).logits[0]
    predicted = logits[len(context) - 1 : -1].log_softmax(-1)
    likely = sum(float(predicted[i, token]) for i, token in enumerate(continuation))
    greedy = predicted.argmax(-1).tolist() == continuation
    return Continuation(likely, len(continuation), greedy)


def _greedy(model: Any, context: list[int], count: int) -> list[int]:
    ids = [*context]
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batches_equal_single_rows_of_transformers(calm: TinyFactory, name: str) -> None:
    model, pairs = calm(name).hf, _pairs()
    for found, pair in zip(continuations(model, pairs), pairs, strict=True):
        expected = _reference(model, pair)
        assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-4)
        assert (found.tokens, found.greedy) == (expected.tokens, expected.greedy)


def test_log_probabilities_by_hand() -> None:
    model = bigram({(5, 6): 0.5, (6, 7): 0.25, (6, 8): 0.5})
    pairs = [([9, 5], [6, 7]), ([5], [6, 8]), ([5], [6])]
    found = continuations(model, pairs)
    assert [one.log_probability for one in found] == pytest.approx(
        [torch.tensor(p).log().item() for p in (1 / 8, 1 / 4, 1 / 2)], abs=1e-4
    )
    assert [one.tokens for one in found] == [2, 2, 1]
    assert [one.greedy for one in found] == [False, True, True]


def test_greedy_decoding_finds_what_is_likeliest_all_along(calm: TinyFactory) -> None:
    model, context = calm("qwen3").hf, [3, 17, 80]
    likeliest = _greedy(model, context, 4)
    pairs = [(context, likeliest)]
    for at in range(4):
        changed = [*likeliest]
        changed[at] = (changed[at] + 1) % 128
        pairs.append((context, changed))
    assert [one.greedy for one in continuations(model, pairs)] == [True] + 4 * [False]


def test_long_contexts_are_cut_from_the_left(calm: TinyFactory) -> None:
    model, rng = calm("llama").hf, random.Random(2)
    context, end = [rng.randrange(3, 128) for _ in range(EDGE + 40)], [11, 12, 13]
    (cut,) = continuations(model, [(context, end)])
    (kept,) = continuations(model, [(context[-(EDGE - 3) :], end)])
    assert cut == kept
    expected = _reference(model, (context[-(EDGE - 3) :], end))
    assert cut.log_probability == pytest.approx(expected.log_probability, rel=1e-4)


def test_order_is_kept_and_progress_is_told_over_several_batches(
    calm: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs, seen = calm("llama").hf, _pairs(), list[tuple[int, int]]()
    whole = continuations(model, pairs)
    monkeypatch.setattr(likelihood, "_BATCH_TOKENS", 64)
    parts = continuations(model, pairs, lambda done, of: seen.append((done, of)))
    assert [one.log_probability for one in parts] == pytest.approx(
        [one.log_probability for one in whole], rel=1e-4
    )
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (9, 9)


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_BATCH_TOKENS", 20)
    lengths = [4, 30, 9, 10, 5]
    batches = list(likelihood._batches([([0] * (length - 1), [0]) for length in lengths]))
    # 30 alone is too many, and is taken alone; 10 and 9 are 20 with padding; 5 and 4 are 10.
    assert batches == [[1], [3, 2], [4, 0]]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [3]), "pair 2 has 0 tokens of context and 1 after it"),
        (([3], []), "pair 2 has 1 tokens of context and 0 after it"),
        (([3], [3] * EDGE), r"pair 2 has 1 tokens of context and 128 after it.*fewer than 128"),
    ],
    ids=["no context", "no continuation", "too long"],
)
def test_what_cannot_be_predicted_is_refused(pair: Pair, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        continuations(bigram(chain(3, 4)), [([3], [4]), pair])


def test_no_pairs_make_no_figures() -> None:
    assert continuations(bigram({}), []) == []


PIECES = ("▁the", "▁cat", "▁sat", "▁")


def prepending(*, bos: bool = False) -> Any:
    """A tokenizer that puts a space before every text that it encodes, as SentencePiece's do."""
    words = {piece: number for number, piece in enumerate((*PIECES, "<s>"))}
    inner = tokenizers.Tokenizer(models.WordLevel(words, unk_token="▁"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    if bos:
        inner.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", words["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def test_a_continuation_has_no_space_of_its_own() -> None:
    tokenizer = prepending()
    apart = tokenizer(" sat", add_special_tokens=False)["input_ids"]
    assert [PIECES[number] for number in apart] == ["▁", "▁sat"], "what encoding apart would give"
    context, continuation = encode_pair(tokenizer, "the cat", " sat")
    assert [PIECES[number] for number in context] == ["▁the", "▁cat"]
    assert [PIECES[number] for number in continuation] == ["▁sat"]


def test_a_space_at_the_end_of_a_context_is_the_continuations() -> None:
    assert encode_pair(prepending(), "the cat ", "sat") == encode_pair(
        prepending(), "the cat", " sat"
    )


def test_a_context_begins_as_every_text() -> None:
    context, _ = encode_pair(prepending(bos=True), "the cat", " sat")
    assert context == [4, 0, 1]
