"""A stream for asyncio: a thread reads it, and the event loop gets its chunks.

One thread per generation, for as long as it runs: the engine runs on it, and a chunk costs the loop
one callback. A slow reader does not hold the sequence up: chunks wait for it in memory, and a
generation has at most as many as the context has tokens.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from types import TracebackType

from edgelm.python310 import Self
from edgelm.runtime.generation.chunk import Chunk
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream

_Item = Chunk | BaseException | None  # None: the end


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one generation; the first request begins it.

    It is for one task: if several read it, each gets some of the chunks.

    Leaving `async with`, `aclose`, dropping it and cancelling the task that reads it end the
    generation within one step.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._begun = self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            reader = _Reader(self._stream, asyncio.get_running_loop(), self._items)
            threading.Thread(target=reader.run, name="edgelm-generation", daemon=True).start()
        try:
            item = await self._items.get()
        except BaseException:  # this task was cancelled
            self._stream.cancel()
            raise
        if isinstance(item, Chunk):
            return item
        self._over = True
        self._items.put_nowait(None)  # for other tasks, if several read it
        if item is None:
            raise StopAsyncIteration
        raise item

    @property
    def reply(self) -> Reply:
        """The whole answer, once the stream has ended: see Stream."""
        return self._stream.reply

    async def read(self) -> Reply:
        """Read it to its end; return the whole answer."""
        async for _ in self:
            pass
        return self.reply

    def cancel(self) -> None:
        """End it with the finish reason `cancelled`; may be called from any thread."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End it here, and wait until its sequence is given back."""
        self._stream.cancel()
        if self._begun:
            while not self._over:
                item = await self._items.get()
                self._over = not isinstance(item, Chunk)
        else:
            self._over = True
            self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._stream.cancel()  # its thread has a reference to the stream, not to this


class _Reader:
    """Reads a stream on a thread of its own."""

    def __init__(
        self, stream: Stream, loop: asyncio.AbstractEventLoop, items: "asyncio.Queue[_Item]"
    ) -> None:
        self._stream = stream
        self._loop = loop
        self._items = items

    def run(self) -> None:
        last: _Item = None
        try:
            for chunk in self._stream:
                if not self._put(chunk):
                    self._stream.close()
        except BaseException as error:
            last = error
        self._put(last)

    def _put(self, item: _Item) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody reads
            return False
        return True
