"""Several sequences of one model: who gets one, who waits, and what they share."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.bundle import read_manifest
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Stream
from tests.checkpoints.tiny_chat import CONTEXT
from tests.export.graphs import cpu_session

PROMPTS = [np.random.default_rng(seed).integers(4, 320, 10 + seed).tolist() for seed in range(6)]
COUNT = 12
OPEN = {2: -np.inf, 3: -np.inf}  # no answer ends by itself


@pytest.fixture
def two(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture
def chunked(bundle: Path) -> Iterator[LanguageModel]:
    """Two sequences that read a prompt 8 tokens at a time."""
    manifest = read_manifest(bundle)
    first = cpu_session(bundle, manifest.graph, capacity=CONTEXT, chunk=8, threads=1)
    with LanguageModel(bundle, manifest, [first, first.sibling()]) as lm:
        yield lm


@pytest.fixture(scope="module")
def alone(bundle: Path) -> list[str]:
    """What each prompt gives on a model that nobody else uses."""
    texts = []
    for prompt in PROMPTS:
        with edgelm.load(bundle, threads=1) as lm:
            texts.append(lm.generate(prompt, max_tokens=COUNT, logit_bias=OPEN).text)
    return texts


def held(lm: LanguageModel) -> list[list[int]]:
    return [slot.session.tokens for slot in lm._sequences.slots]


def test_streams_by_turns_keep_their_sequences(two: LanguageModel, alone: list[str]) -> None:
    streams = [two.stream(prompt, max_tokens=COUNT, logit_bias=OPEN) for prompt in PROMPTS[:2]]
    for _ in range(COUNT + 1):
        for stream in streams:
            next(stream)
    assert [stream.reply.text for stream in streams] == alone[:2]
    assert [tokens[: len(prompt)] for tokens, prompt in zip(held(two), PROMPTS, strict=False)] == (
        PROMPTS[:2]
    )
    assert [stream.reply.timings.prefilled for stream in streams] == [10, 11]


def test_the_weights_are_there_once(two: LanguageModel) -> None:
    first, second = (slot.session.engine for slot in two._sequences.slots)  # type: ignore[attr-defined]
    assert first._sessions is second._sessions
    assert first._cache[0][0] is not second._cache[0][0]


def test_threads_beyond_the_sequences_wait_and_mix_nothing(
    two: LanguageModel, alone: list[str]
) -> None:
    wrong: list[object] = []

    def work(offset: int) -> None:
        for n in range(10):
            at = (n + offset) % len(PROMPTS)
            reply = two.generate(PROMPTS[at], max_tokens=COUNT, logit_bias=OPEN)
            wrong.extend([reply.text] if reply.text != alone[at] else [])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []
    assert (two.running, two.waiting) == (0, 0)


def test_requests_wait_in_order(lm: LanguageModel) -> None:
    holder = lm.stream(PROMPTS[0], max_tokens=100, logit_bias=OPEN)
    next(holder)
    order: list[int] = []

    def work(number: int) -> None:
        lm.generate(PROMPTS[number], max_tokens=1, logit_bias=OPEN)
        order.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        deadline = time.monotonic() + 30
        while lm.waiting < number and time.monotonic() < deadline:
            next(holder)  # it is in use: nobody takes its sequence
    assert lm.waiting == 4
    holder.close()
    for thread in threads:
        thread.join(60)
    assert order == [1, 2, 3, 4]


def test_a_stream_that_nobody_reads_holds_nobody_up(lm: LanguageModel, alone: list[str]) -> None:
    forgotten = lm.stream(PROMPTS[0], max_tokens=COUNT, logit_bias=OPEN)
    next(forgotten)
    texts: list[str] = []
    other = threading.Thread(
        target=lambda: texts.append(lm.generate(PROMPTS[1], max_tokens=COUNT, logit_bias=OPEN).text)
    )
    other.start()
    other.join(60)
    assert texts == [alone[1]]
    assert forgotten.read().text == alone[0]


def test_dropped_streams_give_their_sequence_back_at_once(two: LanguageModel) -> None:
    streams: list[Stream] = [two.stream(prompt, logit_bias=OPEN) for prompt in PROMPTS[:2]]
    for stream in streams:
        next(stream)
    assert two.running == 2
    del stream, streams
    gc.collect()
    assert two.running == 0


def test_a_waiting_request_is_cancelled(lm: LanguageModel) -> None:
    holder = lm.stream(PROMPTS[0], max_tokens=100, logit_bias=OPEN)
    next(holder)
    waiting = lm.stream(PROMPTS[1], max_tokens=5, logit_bias=OPEN)
    reader = threading.Thread(target=waiting.read)
    reader.start()
    while lm.waiting == 0:
        next(holder)
    waiting.cancel()
    while reader.is_alive():
        next(holder, None)
        reader.join(0.01)
    assert waiting.reply.finish_reason == "cancelled"
    assert waiting.reply.usage.completion_tokens == 0
    assert lm.waiting == 0


def test_a_shared_beginning_is_computed_once(two: LanguageModel, bundle: Path) -> None:
    beginning = np.random.default_rng(9).integers(4, 320, 60).tolist()
    first = two.generate([*beginning, 5, 6], max_tokens=COUNT, logit_bias=OPEN)
    second = two.generate([*beginning, 7, 8, 9], max_tokens=COUNT, logit_bias=OPEN)
    assert first.usage.cached_tokens == 0
    assert (second.usage.cached_tokens, second.timings.prefilled) == (60, 3)
    with edgelm.load(bundle, threads=1) as fresh:
        assert (
            fresh.generate([*beginning, 7, 8, 9], max_tokens=COUNT, logit_bias=OPEN).text
            == second.text
        )
    # The first conversation still has its own sequence.
    more = two.generate([*beginning, 5, 6, *first.tokens, 10], max_tokens=1, logit_bias=OPEN)
    assert more.usage.cached_tokens >= 60 + COUNT


def test_a_long_prompt_is_interleaved_with_others(chunked: LanguageModel) -> None:
    """Another request waits for one chunk, not for the prompt."""
    order: list[str] = []
    long = np.random.default_rng(3).integers(4, 320, 100)
    for name, slot in zip(["long", "short"], chunked._sequences.slots, strict=True):
        advance = slot.session.advance

        def noted(tokens: object, *, logits: int = 1, name: str = name, run: object = advance):  # type: ignore[no-untyped-def]
            order.append(name)
            if order.count("long") == 2:
                begin.set()
                time.sleep(0.2)
            return run(tokens, logits=logits)  # type: ignore[operator]

        slot.session.advance = noted  # type: ignore[method-assign]
    begin = threading.Event()
    reader = threading.Thread(target=lambda: chunked.generate(long, max_tokens=1, logit_bias=OPEN))
    reader.start()
    assert begin.wait(60)
    chunked.generate(PROMPTS[0][:4], max_tokens=3, logit_bias=OPEN)
    reader.join(60)
    assert order.index("short") <= 4
    assert order.count("long") == 13


def test_memory_of_sequences_counts(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    one, four = (loaded_bytes(manifest, CONTEXT, sequences=n) for n in (1, 4))
    with edgelm.load(bundle, threads=1) as lm:
        assert four - one == 3 * lm.session.cache_bytes
    edgelm.load(bundle, threads=1, sequences=4, max_memory=four).close()
    with pytest.raises(edgelm.EdgeLMError, match=f"a context of {CONTEXT} needs about"):
        edgelm.load(bundle, threads=1, sequences=4, max_memory=four - 1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 1000])
def test_sequences_that_are_no_number(bundle: Path, count: int) -> None:
    with pytest.raises(BadInput, match="expected an integer from 1 to 256"):
        edgelm.load(bundle, sequences=count)


def test_timings_add_up(two: LanguageModel) -> None:
    reply = two.generate(PROMPTS[0], max_tokens=5, logprobs=1, logit_bias=OPEN)
    assert reply.usage.total_tokens == 15
    assert 0 <= reply.timings.queued_ms <= reply.timings.first_token_ms
    assert reply.timings.decoded == 4
    speed = reply.timings.tokens_per_second
    assert speed == pytest.approx(4e3 / reply.timings.decode_ms)
    assert reply.logprobs is not None
    assert [one.token for one in reply.logprobs] == reply.tokens
    assert two.generate(PROMPTS[0], max_tokens=1, logit_bias=OPEN).logprobs is None


def test_a_reply_is_there_at_the_end_only(lm: LanguageModel) -> None:
    stream = lm.stream(PROMPTS[0], max_tokens=2, logit_bias=OPEN)
    next(stream)
    with pytest.raises(BadInput, match="has not ended"):
        _ = stream.reply
    assert stream.read().stop_reason == "max_tokens"
