"""The tiny tokenizer as `transformers` holds it."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.checkpoints.tiny_chat import TEMPLATE, tiny_tokenizer


def tiny_fast_tokenizer() -> Any:
    """The tokenizer of `tests.checkpoints.tiny_chat` with its special tokens and chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
