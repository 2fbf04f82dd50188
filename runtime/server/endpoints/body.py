"""The body of a request: bounded in size and time, and checked against a record."""

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from edgelm.reasons import reason
from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.settings import ServerSettings

T = TypeVar("T")

# The first half of a character beyond 16 bits, without the second: programs that cut texts at
# 16-bit units, as in JavaScript, leave one.
_HALF_PAIR = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


async def read_body(request: Request, kind: type[T], settings: ServerSettings) -> T:
    """The body as a record.

    Raises:
        ApiError: another content type, too large, too slow, not JSON, or not such a record.
        ClientDisconnect: the client left.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        # A page of another origin can send any other type without asking.
        raise ApiError(415, f"the content type is {given[:80]!r}, expected application/json")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(415, f"the content encoding is {encoding[:80]!r}, expected none")
    try:
        content = await asyncio.wait_for(
            _read(request, settings.max_body_bytes), settings.body_seconds
        )
    except (TimeoutError, asyncio.TimeoutError):
        raise ApiError(
            408, f"the body did not arrive within {settings.body_seconds:g} seconds"
        ) from None
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        problem = reason(error)
        if not isinstance(error, msgspec.ValidationError) and _HALF_PAIR.search(content):
            problem = "a text has half of a surrogate pair, such as \\ud83d without \\ude00"
        raise ApiError(400, f"the body cannot be used: {problem}") from None


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limit:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise too_large
    return bytes(content)


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has left; the body must have been read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


__all__ = ["ClientDisconnect", "read_body", "wait_for_disconnect"]
