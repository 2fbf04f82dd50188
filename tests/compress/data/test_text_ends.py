"""What a tokenizer puts before a text is what training data gets."""

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from edgelm.compress.data.text_ends import TextEnds
from tests.checkpoints.tiny_chat import tiny_tokenizer


def with_template(single: str | None) -> Any:
    inner = Tokenizer.from_str(tiny_tokenizer().to_str())
    begin, end = (inner.token_to_id(token) for token in ("<s>", "<|end|>"))
    if single is not None:
        inner.post_processor = TemplateProcessing(
            single=single, special_tokens=[("<s>", begin), ("<|end|>", end)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|end|>")


@pytest.mark.parametrize(
    ("single", "begins"),
    [(None, False), ("$A", False), ("<s> $A", True), ("<s> $A <|end|>", True)],
    ids=["no template", "nothing", "BOS", "BOS and EOS"],
)
def test_as_the_tokenizer_begins_a_text(single: str | None, begins: bool) -> None:
    tokenizer = with_template(single)
    before = (tokenizer.bos_token_id,) if begins else ()
    ends = TextEnds.of(tokenizer)
    assert ends == TextEnds(before, (tokenizer.eos_token_id,))
    assert ends.around([7, 8]) == [*before, 7, 8, tokenizer.eos_token_id]
    assert ends.around([7, 8], starts=True) == [7, 8, tokenizer.eos_token_id]
    assert ends.around([]) == []


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = with_template("<s> $A")
    tokenizer.eos_token = None
    assert TextEnds.of(tokenizer).after == ()
