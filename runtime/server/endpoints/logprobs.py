"""Log-probabilities as OpenAI's API has them."""

from collections.abc import Iterable
from typing import Any

from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.text.token_bytes import TokenBytes, token_name


def token_logprobs(chunks: Iterable[Chunk], names: TokenBytes) -> list[dict[str, Any]]:
    """Every token with the most probable ones in its place."""
    return [
        {
            **_entry(chunk.token, chunk.logprob, names),
            "top_logprobs": [_entry(one.token, one.logprob, names) for one in chunk.top_logprobs],
        }
        for chunk in chunks
        if chunk.token is not None and chunk.logprob is not None
    ]


def chat_logprobs(chunks: Iterable[Chunk], names: TokenBytes) -> dict[str, Any]:
    """Of /v1/chat/completions."""
    return {"content": token_logprobs(chunks, names), "refusal": None}


def completion_logprobs(
    chunks: Iterable[Chunk], names: TokenBytes, *, offset: int = 0
) -> dict[str, Any]:
    r"""Of /v1/completions: parallel lists; `offset` is where the text of the first chunk begins.

    As OpenAI has it, a token that is not whole characters is named by its bytes: `bytes:\xf0\x9f`.
    """
    tokens, logprobs, tops, offsets = [], [], [], []
    for chunk in chunks:
        if chunk.token is not None and chunk.logprob is not None:
            tokens.append(_name(chunk.token, names))
            logprobs.append(chunk.logprob)
            tops.append({_name(one.token, names): one.logprob for one in chunk.top_logprobs})
            offsets.append(offset)
        offset += len(chunk.text)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _name(token: int, names: TokenBytes) -> str:
    return token_name(names(token), "bytes:")


def _entry(token: int, logprob: float | None, names: TokenBytes) -> dict[str, Any]:
    content = names(token)
    # JSON has no infinity: what is impossible is very improbable.
    return {
        "token": token_name(content),
        "logprob": max(logprob or 0.0, -9999.0),
        "bytes": list(content),
    }
