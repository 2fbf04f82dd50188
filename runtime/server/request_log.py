"""One line of JSON per request on standard error. Prompts are not in it, unless asked."""

import json
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.server.metrics import Metrics

log = logging.getLogger("edgelm.serve")


def log_fields(request: Request) -> dict[str, Any]:
    """What the log says of a request besides its path and status; endpoints add to it."""
    fields: dict[str, Any] = request.scope.setdefault("edgelm.log", {})
    return fields


def log_reply(request: Request, reply: Reply) -> None:
    """Note counts and times of an answer."""
    usage, timings = reply.usage, reply.timings
    log_fields(request).update(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=reply.finish_reason,
        queued_ms=round(timings.queued_ms, 1),
        first_token_ms=round(timings.first_token_ms, 1),
        tokens_per_second=timings.tokens_per_second and round(timings.tokens_per_second, 1),
    )


class RequestLog:
    """Middleware that logs and counts every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._write(scope, status, time.perf_counter() - started)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        client = scope.get("client")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,  # 0: the client left before the answer began
            "ms": round(1e3 * seconds, 1),
            "client": client[0] if client else None,
            **scope.get("edgelm.log", {}),
        }
        log.info("%s", json.dumps(line, default=str))
