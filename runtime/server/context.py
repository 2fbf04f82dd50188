"""What the endpoints share: the model, settings, the generations; and how an endpoint is made."""

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgelm.errors import EdgeLMError
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.server.endpoints.body import ClientDisconnect, read_body
from edgelm.runtime.server.endpoints.generations import Generations
from edgelm.runtime.server.errors import ApiError, as_api_error
from edgelm.runtime.server.request_log import log, log_fields
from edgelm.runtime.server.settings import ServerSettings
from edgelm.runtime.text.token_bytes import TokenBytes

Body = TypeVar("Body")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What every endpoint is given."""

    lm: LanguageModel
    settings: ServerSettings
    generations: Generations
    started: int
    token_bytes: TokenBytes

    def check_model(self, name: str) -> None:
        """Raise ApiError for a model that this server does not have."""
        if name != self.settings.model and name not in self.lm.adapters:
            models = ", ".join(map(repr, (self.settings.model, *self.lm.adapters)))
            raise ApiError(
                404,
                f"the model {name!r} is unknown here; this server has {models}",
                code="model_not_found",
                param="model",
            )

    def adapter(self, model: str) -> str | None:
        """The adapter that a model's name stands for; None for the bundle itself."""
        return None if model == self.settings.model else model


Handler = Callable[[Request, Body, ServerContext], Awaitable[Response]]


def endpoint(context: ServerContext, kind: type[Body], handler: Handler[Body]) -> Endpoint:
    """An endpoint whose body is a record with a `model`."""

    async def answer(request: Request) -> Response:
        body = await read_body(request, kind, context.settings)
        context.check_model(body.model)  # type: ignore[attr-defined]
        if context.settings.log_text:
            log_fields(request)["body"] = msgspec.to_builtins(body)
        try:
            return await handler(request, body, context)
        except (ApiError, EdgeLMError, ClientDisconnect):
            raise
        except Exception as error:
            log.error("internal error", exc_info=error)
            raise as_api_error(error) from None

    return answer


def json_response(data: Any) -> Response:
    """An answer of JSON."""
    return Response(msgspec.json.encode(data), media_type="application/json")


def new_id(prefix: str) -> str:
    """An id as OpenAI's API has them."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
