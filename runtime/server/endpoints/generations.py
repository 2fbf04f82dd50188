"""The requests of a server and their generations: how many may wait, and what is measured."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from edgelm.runtime.generation.async_stream import AsyncStream
from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.server.endpoints.body import wait_for_disconnect
from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.server.settings import ServerSettings

T = TypeVar("T")


class Generation:
    """One generation for a request; iterate it once, and close it whatever happens."""

    def __init__(self, stream: AsyncStream, metrics: Metrics) -> None:
        self._stream = stream
        self._metrics = metrics
        self._first: Chunk | None = None
        self._started = time.monotonic()
        self._closed = False

    async def begin(self) -> None:
        """Wait for the first chunk, so that an error comes before the answer begins."""
        self._first = await anext(self._stream)
        self._metrics.first_token.observe(time.monotonic() - self._started)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        assert self._first is not None
        yield self._first
        async for chunk in self._stream:
            yield chunk

    async def read(self) -> Reply:
        """The whole answer."""
        return await self._stream.read()

    @property
    def reply(self) -> Reply:
        """The whole answer, once it has ended."""
        return self._stream.reply

    def close(self) -> None:
        """End it, if it has not ended; its sequence is free within one step."""
        if self._closed:
            return
        self._closed = True
        self._stream.cancel()
        self._metrics.count(self._stream, time.monotonic() - self._started)


class Place:
    """A request among those that run or wait, with its generations.

    A request with several answers or prompts has one place: when the first of its generations has
    begun, no other one is refused. As many of them run at a time as the model has sequences.
    """

    def __init__(self, owner: "Generations") -> None:
        self._owner = owner
        self._started = time.monotonic()
        self._closed = False
        self._room = asyncio.Semaphore(owner.lm.sequences)
        self.generations: list[Generation] = []

    async def start(self, prepare: Callable[[], Stream]) -> Generation:
        """Begin a generation and wait for its first chunk.

        Args:
            prepare: makes the stream, on a thread: templates and grammars take time.

        Raises:
            EdgeLMError: what `prepare` and the first step raise.
        """
        generation = Generation(AsyncStream(await asyncio.to_thread(prepare)), self._owner.metrics)
        self.generations.append(generation)
        await generation.begin()
        return generation

    async def first(self, request: Request, started: Awaitable[Generation]) -> Generation:
        """The generation with which a stream of events begins; after an error the place is free."""
        try:
            return await unless_disconnected(request, started)
        except BaseException:
            self.close()
            raise

    async def read(self, start: Callable[[], Awaitable[Generation]]) -> Reply:
        """The whole answer of a generation, which begins when the request's others leave room."""
        async with self._room:
            generation = await start()
            try:
                return await generation.read()
            finally:
                generation.close()

    def close(self) -> None:
        """End its generations and give the place to another request."""
        if self._closed:
            return
        self._closed = True
        for generation in self.generations:
            generation.close()
        self._owner.left(time.monotonic() - self._started)


class Generations:
    """The requests that run or wait, as many as the limits allow."""

    def __init__(self, lm: LanguageModel, settings: ServerSettings, metrics: Metrics) -> None:
        self.lm = lm
        self.metrics = metrics
        self.stopping = False
        self._settings = settings
        self._active = 0
        self._seconds = 1.0  # of a request, on average

    def place(self) -> Place:
        """A place for a request; close it whatever happens.

        Raises:
            ApiError: the server stops, or too many requests wait.
        """
        if self.stopping:
            raise ApiError(503, "this server is being stopped", kind="server_error", retry_after=10)
        if self._active >= self.lm.sequences + self._settings.max_queue:
            self.metrics.refused.inc()
            raise ApiError(
                429,
                f"{self._active} requests run or wait already; try again later",
                kind="rate_limit_error",
                code="queue_full",
                retry_after=max(1, min(60, math.ceil(self._seconds))),
            )
        self._active += 1
        return Place(self)

    def left(self, seconds: float) -> None:
        """A request has ended."""
        self._active -= 1
        self._seconds += 0.1 * (seconds - self._seconds)


async def all_or_none(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results of works that run at a time; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of work that ends when the client leaves.

    Raises:
        ClientDisconnect: it left; the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
