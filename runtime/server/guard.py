"""Who may use the server: API keys, and no web page of somebody else.

A browser lets every page send requests to this machine. Such a page cannot send JSON without the
server's consent (see `body`), but it can have its own name resolve to 127.0.0.1 and then read
answers, too. So without keys only this machine's own names are accepted as `Host`.
"""

import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.settings import ServerSettings, is_loopback

# What tells nothing: whether the server runs, and the page without any data.
_OPEN = ("/health", "/")


class Guard:
    """Middleware that refuses requests before they are read."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with an error."""
        if scope["type"] == "http":
            refused = self._refused(Request(scope))
            if refused is not None:
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refused(self, request: Request) -> ApiError | None:
        if not self._keys:
            name = request.url.hostname or ""
            if is_loopback(name) or name == self._settings.host:
                return None
            return ApiError(421, f"this server does not have the name {name!r}; use 127.0.0.1")
        if request.url.path in _OPEN:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip().encode()
        # All are compared, so that the time tells nothing.
        equal = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(equal):
            return None
        return ApiError(
            401,
            "no valid API key: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
        )
