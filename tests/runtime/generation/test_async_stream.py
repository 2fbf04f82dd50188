"""asyncio: streams, cancelling, and no thread that stays."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel

PROMPTS = ["The miller", "Why is the sky", "Garnets up to", "wheel"]
COUNT = 12


@pytest.fixture
def two(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        yield lm


def idle(lm: LanguageModel) -> bool:
    """Whether nothing runs or waits, within a while."""
    end = time.monotonic() + 30
    while (lm.running or lm.waiting) and time.monotonic() < end:
        time.sleep(0.01)
    return not lm.running and not lm.waiting


def test_many_at_once_give_what_they_give_alone(two: LanguageModel) -> None:
    expected = [two.generate(prompt, max_tokens=COUNT).text for prompt in PROMPTS]

    async def main() -> list[str]:
        replies = await asyncio.gather(
            *(two.agenerate(prompt, max_tokens=COUNT) for prompt in PROMPTS)
        )
        return [reply.text for reply in replies]

    assert asyncio.run(main()) == expected
    assert idle(two)


def test_chunks_come_one_by_one(two: LanguageModel) -> None:
    async def main() -> list[str]:
        chat = two.chat()
        async with chat.asend("Why?", max_tokens=COUNT) as stream:
            texts = [chunk.text async for chunk in stream]
        assert chat.messages[-1]["content"] == stream.reply.text
        return texts

    assert len(asyncio.run(main())) == COUNT + 1


def test_a_cancelled_task_ends_its_generation(two: LanguageModel) -> None:
    async def main() -> None:
        task = asyncio.create_task(two.agenerate("a"))
        while not two.running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert idle(two)


def test_leaving_a_stream_ends_it(two: LanguageModel) -> None:
    async def main() -> None:
        async with two.astream("a") as stream:
            await anext(stream)
        assert two.running == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        dropped = two.astream("a")
        await anext(dropped)

    asyncio.run(main())
    assert idle(two)


def test_errors_come_out_where_the_stream_is_read(two: LanguageModel) -> None:
    def explode(_: object, __: object) -> None:
        raise RuntimeError("broken")

    async def main() -> None:
        with pytest.raises(BadInput, match="the prompt is empty"):
            await two.agenerate("")
        with pytest.raises(RuntimeError, match="broken"):
            await two.agenerate("a", logits_processors=[explode])  # type: ignore[list-item]

    asyncio.run(main())
    assert idle(two)


def test_several_readers_all_come_to_the_end(two: LanguageModel) -> None:
    async def main() -> None:
        stream = two.astream("a", max_tokens=5)
        replies = await asyncio.wait_for(asyncio.gather(stream.read(), stream.read()), 60)
        assert replies[0] == replies[1]

    asyncio.run(main())


def test_no_thread_is_left(two: LanguageModel) -> None:
    before = threading.active_count()
    asyncio.run(two.agenerate("a", max_tokens=3))
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
