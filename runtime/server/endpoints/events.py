"""Server-sent events, as OpenAI's clients read them."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from edgelm.runtime.server.endpoints.generations import Place

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One event with JSON."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(StreamingResponse):
    """An answer of events; when it ends in any way, its request gives up its place.

    Starlette cancels it when the client leaves, perhaps before its first event. So the place is
    closed here, not in the iterator, whose `finally` does not run if it never began.
    """

    def __init__(self, events: AsyncIterator[bytes], place: Place) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.close()
