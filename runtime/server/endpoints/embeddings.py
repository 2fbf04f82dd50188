"""POST /v1/embeddings: the vectors of texts, by a bundle of an embedding model."""

import asyncio
import base64
import threading
import time
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from edgelm.errors import BadInput
from edgelm.runtime.embedding.embedder import Embedder
from edgelm.runtime.embedding.encoding import Text
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.server.context import ServerContext, json_response
from edgelm.runtime.server.endpoints.generations import unless_disconnected
from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.request_log import log_fields
from edgelm.runtime.server.requests import EmbeddingsRequest

_MAX_TEXTS = 2048  # as OpenAI's

Vectors = npt.NDArray[np.float32]


async def embeddings(request: Request, body: EmbeddingsRequest, context: ServerContext) -> Response:
    """One vector for each text, in their order."""
    if not context.lm.embeds:
        raise ApiError(
            400,
            f"{context.settings.model!r} has no embeddings: it is a language model, whose graph "
            "ends in logits",
            param="model",
        )
    embedder, texts = context.lm.embedder, _texts(body)
    _check_dimensions(embedder, body.dimensions)
    with closing(context.generations.place()):
        started = time.monotonic()
        tokens, vectors = await unless_disconnected(request, _run(embedder, texts, body))
        count = sum(map(len, tokens))
        context.generations.metrics.count_texts(len(tokens), count, time.monotonic() - started)
    log_fields(request).update(texts=len(tokens), prompt_tokens=count)
    data = [
        {"object": "embedding", "index": at, "embedding": _encoded(row, body.encoding_format)}
        for at, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "data": data, "model": body.model, "usage": usage})


def _texts(body: EmbeddingsRequest) -> list[Text]:
    """The input as a list: a text, texts, a list of token ids, or several of these."""
    given = body.input
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(one, int) for one in given):
        return [given]  # type: ignore[list-item]
    if not 1 <= len(given) <= _MAX_TEXTS or any(isinstance(one, int) for one in given):
        raise ApiError(
            400,
            f"input is a list of {len(given)}; expected 1 to {_MAX_TEXTS} texts or lists of token "
            "ids, or one list of token ids",
            param="input",
        )
    return given  # type: ignore[return-value]


def _check_dimensions(embedder: Embedder, dimensions: int | None) -> None:
    try:
        embedder.check_dimensions(dimensions)
    except BadInput as error:
        raise ApiError(400, str(error), param="dimensions") from None


async def _run(
    embedder: Embedder, texts: list[Text], body: EmbeddingsRequest
) -> tuple[list[Tokens], Vectors]:
    """Tokens and vectors, on a thread; it stops at its next chunk when this is cancelled."""
    stop = threading.Event()

    def work() -> tuple[list[Tokens], Vectors]:
        tokens = embedder.encode(texts, prompt=body.prompt, truncate=bool(body.truncate))
        return tokens, embedder.vectors(tokens, body.dimensions, stop.is_set)

    try:
        return await asyncio.to_thread(work)
    finally:
        stop.set()


def _encoded(row: Vectors, encoding: str | None) -> Any:
    """A vector as numbers, or as base64 of its little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()
