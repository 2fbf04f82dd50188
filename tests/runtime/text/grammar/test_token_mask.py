"""Masks: the tokens that remain are those with which the text can still match."""

import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import ResponseFormat
from edgelm.runtime.text.grammar.token_mask import TokenMask
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer

END = 3


def start(regex: str, eos: frozenset[int] = frozenset({END}), size: int = VOCAB) -> TokenMask:
    compiler = GrammarCompiler(tiny_tokenizer().to_str, size, eos)
    return compiler.start(ResponseFormat("regex", regex))


def allowed(mask: TokenMask, size: int = VOCAB) -> set[str]:
    row = mask([], np.zeros(size, dtype=np.float32))
    return {str(tiny_tokenizer().id_to_token(int(i))) for i in np.flatnonzero(row == 0)}


def token(text: str) -> int:
    return tiny_tokenizer().encode(text).ids[0]


def test_masks_follow_the_text() -> None:
    mask = start("[0-2]{1,2}")
    assert allowed(mask) == {"0", "1", "2"}
    mask.advance(token("1"))
    assert allowed(mask) == {"0", "1", "2", "<|end|>"}
    assert not mask.complete
    mask.advance(token("2"))
    assert mask.complete


def test_an_end_token_completes_it() -> None:
    mask = start("[0-2]{1,2}")
    mask.advance(token("1"))
    mask.advance(END)
    assert mask.complete


def test_all_end_tokens_are_allowed_and_control_tokens_never() -> None:
    mask = start("(.|\n)*", eos=frozenset({2, END}))
    assert {"</s>", "<|end|>"} <= allowed(mask)
    assert not {"<s>", "<pad>"} & allowed(mask)


def test_a_model_without_an_end_token_ends_where_nothing_may_follow() -> None:
    mask = start("[0-2]{1,2}", eos=frozenset())
    mask.advance(token("1"))
    assert allowed(mask) == {"0", "1", "2"}
    mask.advance(token("2"))
    assert mask.complete


@pytest.mark.parametrize("size", [VOCAB + 64, VOCAB - 10])
def test_logits_of_another_size_than_the_tokenizer(size: int) -> None:
    row = start("[0-2]{1,2}", size=size)([], np.zeros(size, dtype=np.float32))
    assert row.shape == (size,)
    assert int((row == 0).sum()) == 3


def test_logits_are_not_changed() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    start("a")([], logits)
    assert not logits.any()


def test_a_token_that_the_grammar_forbids_is_refused() -> None:
    with pytest.raises(BadInput, match="response_format cannot be followed"):
        start("[0-2]{1,2}").advance(token("x"))


def test_a_text_that_no_token_can_continue() -> None:
    # The vocabulary of the logits ends before the letter's token.
    size = token("1")
    mask = start("[1]", size=size)
    with pytest.raises(BadInput, match="no token of this model's vocabulary"):
        mask([], np.zeros(size, dtype=np.float32))


def test_forced_text_is_what_all_matches_have_in_common() -> None:
    mask = start("(red|reddish|redan)[0-9]")
    mask([], np.zeros(VOCAB, dtype=np.float32))  # the mask is computed in a thread
    assert mask.forced() == "red"
    for character in "red":
        mask.advance(token(character))
        mask([], np.zeros(VOCAB, dtype=np.float32))
    assert mask.forced() == ""
    mask.advance(token("d"))
    mask([], np.zeros(VOCAB, dtype=np.float32))
    assert mask.forced() == "ish"
