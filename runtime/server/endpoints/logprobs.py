"""Log-probabilities as OpenAI's API has them."""

from collections.abc import Iterable
from typing import Any

from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.text.tokenizer import Tokenizer


def chat_logprobs(chunks: Iterable[Chunk], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of /v1/chat/completions: every token with the most probable ones in its place."""
    return {
        "content": [
            {
                **_entry(chunk.token, chunk.logprob, tokenizer),
                "top_logprobs": [
                    _entry(one.token, one.logprob, tokenizer) for one in chunk.top_logprobs
                ],
            }
            for chunk in chunks
            if chunk.token is not None and chunk.logprob is not None
        ],
        "refusal": None,
    }


def completion_logprobs(
    chunks: Iterable[Chunk], tokenizer: Tokenizer, *, offset: int = 0
) -> dict[str, Any]:
    """Of /v1/completions: parallel lists; `offset` is where the text of the first chunk begins."""
    tokens, logprobs, tops, offsets = [], [], [], []
    for chunk in chunks:
        if chunk.token is not None and chunk.logprob is not None:
            tokens.append(token_text(chunk.token, tokenizer))
            logprobs.append(chunk.logprob)
            tops.append(
                {token_text(one.token, tokenizer): one.logprob for one in chunk.top_logprobs}
            )
            offsets.append(offset)
        offset += len(chunk.text)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """The text of one token; the piece itself for a special token."""
    return tokenizer.decode([token]) or tokenizer.token(token) or ""


def _entry(token: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    text = token_text(token, tokenizer)
    # JSON has no infinity: what is impossible is very improbable.
    return {
        "token": text,
        "logprob": max(logprob or 0.0, -9999.0),
        "bytes": list(text.encode()),
    }
