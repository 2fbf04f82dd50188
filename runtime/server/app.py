"""The application: paths, middleware, and the order in which it stops."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from edgelm.errors import BadInput, EdgeLMError
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.server.context import ServerContext, endpoint, json_response, now
from edgelm.runtime.server.endpoints.chat_completions import chat_completions
from edgelm.runtime.server.endpoints.completions import completions
from edgelm.runtime.server.endpoints.embeddings import embeddings
from edgelm.runtime.server.endpoints.generations import Generations
from edgelm.runtime.server.endpoints.responses import responses
from edgelm.runtime.server.errors import ApiError, as_api_error
from edgelm.runtime.server.guard import Guard
from edgelm.runtime.server.metrics import CONTENT_TYPE, Metrics
from edgelm.runtime.server.request_log import RequestLog
from edgelm.runtime.server.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    ResponsesRequest,
)
from edgelm.runtime.server.settings import ServerSettings
from edgelm.runtime.text.token_bytes import TokenBytes

log = logging.getLogger("edgelm.serve")

# The page has its script and style within; it may load nothing and talk to this server alone.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(lm: LanguageModel, settings: ServerSettings) -> Starlette:
    """The server of a model as an ASGI application; the caller closes the model.

    `app.state.generations.stopping = True` makes it refuse new requests with 503.

    Raises:
        BadInput: the model and one of its adapters have the same name.
    """
    if settings.model in lm.adapters:
        raise BadInput(
            f"the model is served as {settings.model!r}, which is also the name of one of its "
            "adapters; give another name: --model NAME"
        )
    metrics = Metrics(lm)
    generations = Generations(lm, settings, metrics)
    context = ServerContext(
        lm, settings, generations, started=now(), token_bytes=TokenBytes(lm.tokenizer)
    )
    routes = _routes(context, metrics)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                RequestLog, metrics=metrics, paths=frozenset(route.path for route in routes)
            ),
            Middleware(Guard, settings=settings),
        ],
        exception_handlers={
            ApiError: _on_error,
            EdgeLMError: _on_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_error,
        },
        lifespan=_lifespan(metrics),
    )
    app.state.generations = generations
    return app


def _routes(context: ServerContext, metrics: Metrics) -> list[Route]:
    page = _page(context)
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

    async def show_page(_: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def health(_: Request) -> Response:
        if context.generations.stopping:
            raise ApiError(503, "this server is being stopped", kind="server_error", retry_after=10)
        return json_response({"status": "ok"})

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def models(_: Request) -> Response:
        names = (context.settings.model, *context.lm.adapters)
        data = [_model(context, name) for name in names]
        return json_response({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        context.check_model(name)
        return json_response(_model(context, name))

    posts: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/v1/chat/completions", endpoint(context, ChatRequest, chat_completions)),
        ("/v1/completions", endpoint(context, CompletionRequest, completions)),
        ("/v1/responses", endpoint(context, ResponsesRequest, responses)),
        ("/v1/embeddings", endpoint(context, EmbeddingsRequest, embeddings)),
    ]
    return [
        Route("/", show_page),
        Route("/health", health),
        Route("/metrics", show_metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        *(Route(path, handler, methods=["POST"]) for path, handler in posts),
    ]


def _page(context: ServerContext) -> str:
    """The chat page; of an embedding model, how it is used."""
    name = "embeddings.html" if context.lm.embeds else "chat.html"
    return (files("edgelm.runtime.server") / name).read_text(encoding="utf-8")


def _model(context: ServerContext, name: str) -> dict[str, object]:
    """A model of the list; an adapter is one, whose `parent` is the bundle, as vLLM has it."""
    lm = context.lm
    more: dict[str, object] = {}
    if context.adapter(name) is not None:
        more = {"parent": context.settings.model}
    if lm.embeds:
        more = {
            "dimensions": lm.embedder.dimensions,
            "max_tokens": lm.embedder.encoder.max_tokens,
            "prompts": [*lm.embedder.settings.prompts],
        }
    return {
        "id": name,
        "object": "model",
        "created": context.started,
        "owned_by": "edgelm",
        "context_length": lm.context,
        "sequences": lm.sequences,
        "source": lm.manifest.lineage.source,
        **more,
    }


async def _on_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, (ApiError, EdgeLMError)):
        log.error("internal error", exc_info=error)
    return as_api_error(error).response()


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, error.detail).response()
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log has it, as other servers have


def _lifespan(metrics: Metrics) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            metrics.close()

    return run
