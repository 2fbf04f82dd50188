"""Generations of several threads share runs, and each gets what it would get alone."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.errors import BadBundle, BadInput, DoesNotFit
from edgelm.runtime import LanguageModel, Reply, shared_steps
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Logits
from tests.export.graphs import cpu_engine

PROMPTS = [np.random.default_rng(seed).integers(4, 320, 10 + seed).tolist() for seed in range(4)]
COUNT = 24
OPEN = {2: -np.inf, 3: -np.inf}  # no answer ends by itself
Sizes = Counter[int]
# On a busy machine a generation may end before another one has begun.
_ATTEMPTS = 10


@pytest.fixture
def four(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=4) as lm:
        yield lm


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """How many runs there are of each number of sequences; every run waits for all others."""
    monkeypatch.setattr(shared_steps, "_PATIENCE", 1e6)
    monkeypatch.setattr(shared_steps, "_MAX_PATIENCE", 5.0)
    counted: Sizes = Counter()
    real = EngineSession.advance_each

    def advance_each(sessions: Sequence[EngineSession], tokens: Sequence[int]) -> list[Logits]:
        counted[len(sessions)] += 1
        return real(sessions, tokens)

    monkeypatch.setattr(EngineSession, "advance_each", advance_each)
    return counted


def together(*work: Callable[[], Any]) -> list[Any]:
    """What functions return, or raise, in threads of their own that begin at the same moment."""
    results: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(n: int) -> None:
        start.wait(60)
        try:
            results[n] = work[n]()
        except Exception as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def generation(lm: LanguageModel, n: int, **options: Any) -> Callable[[], Reply]:
    given = {"max_tokens": COUNT, "logit_bias": OPEN, **options}
    return lambda: lm.generate(PROMPTS[n], **given)


def in_shared_runs(sizes: Sizes, *work: Callable[[], Any]) -> list[Any]:
    """`together`, again until a run had several sequences: the system may start threads apart."""
    for _ in range(_ATTEMPTS):
        results = together(*work)
        if sizes:
            break
    assert sizes
    return results


KINDS: list[dict[str, Any]] = [
    {"logprobs": 3},
    {"temperature": 0.9, "seed": 5, "top_p": 0.9},
    {"repetition_penalty": 1.3, "temperature": 1.2, "seed": 8, "min_p": 0.05},
    {"response_format": {"type": "regex", "regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}, "logit_bias": {}},
]


def test_different_generations_at_once(four: LanguageModel, sizes: Sizes) -> None:
    work = [generation(four, n, **kind) for n, kind in enumerate(KINDS)]
    alone = [one() for one in work]
    assert not sizes
    for _ in range(_ATTEMPTS):
        replies = together(*work)
        if sizes[4]:
            break
    assert sizes[4] > 0
    for reply, expected in zip(replies, alone, strict=True):
        assert reply.text == expected.text
        assert reply.finish_reason == expected.finish_reason
    ours, theirs = replies[0].chunks, alone[0].chunks
    for one, other in zip(ours, theirs, strict=True):
        assert one.token == other.token
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]
        if one.logprob is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_without_batching_each_runs_alone(bundle: Path, sizes: Sizes) -> None:
    with edgelm.load(bundle, threads=1, sequences=2, batching=False) as lm:

        def answer(prompt: list[int]) -> list[int]:
            return list(lm.generate(prompt, max_tokens=COUNT, logit_bias=OPEN).tokens)

        both = together(*(partial(answer, prompt) for prompt in PROMPTS[:2]))
        alone = [answer(prompt) for prompt in PROMPTS[:2]]
    assert both == alone
    assert not sizes


def test_stop_strings_end_one_of_them(four: LanguageModel, sizes: Sizes) -> None:
    text = generation(four, 0)().text
    stop = text[len(text) // 2 :][:2]
    first, second = in_shared_runs(sizes, generation(four, 0, stop=[stop]), generation(four, 1))
    assert first.text == text[: text.index(stop)]
    assert first.finish_reason == "stop"
    assert second.text == generation(four, 1)().text


def test_they_join_and_leave(four: LanguageModel, sizes: Sizes) -> None:
    lengths = (40, 12, 20, 5)
    alone = [generation(four, n, max_tokens=count)().text for n, count in enumerate(lengths)]
    found: list[str] = [""] * 4

    def first() -> None:
        found[0] = ""
        started: list[threading.Thread] = []
        for at, chunk in enumerate(four.stream(PROMPTS[0], max_tokens=40, logit_bias=OPEN)):
            found[0] += chunk.text
            if at in (2, 5, 8):
                thread = threading.Thread(target=other, args=(len(started) + 1,))
                started.append(thread)
                thread.start()
        for thread in started:
            thread.join(60)

    def other(n: int) -> None:
        found[n] = generation(four, n, max_tokens=lengths[n])().text

    assert in_shared_runs(sizes, first) == [None]
    assert found == alone


def test_a_cancelled_one_leaves_the_others_alone(four: LanguageModel, sizes: Sizes) -> None:
    expected = generation(four, 1)().text
    stream = four.stream(PROMPTS[0], logit_bias=OPEN, max_tokens=100)

    def cancelled() -> Reply:
        for at, _ in enumerate(stream):
            if at == 6:
                stream.cancel()
        return stream.reply

    first, second = together(cancelled, generation(four, 1))
    assert first.finish_reason == "cancelled"
    assert second.text == expected
    assert four.running == 0


def poison(lm: LanguageModel, prompt: list[int]) -> None:
    """Put NaN into the keys of the sequences that hold a prompt."""
    for slot in lm._sequences.slots:
        if slot.session.tokens[: len(prompt)] == prompt:
            engine = cpu_engine(slot.session)  # type: ignore[arg-type]
            for key, _ in engine._pool.view(engine._place):
                key[:, :, 3] = np.nan


def test_one_whose_logits_are_nan_fails_alone(four: LanguageModel, sizes: Sizes) -> None:
    expected = [generation(four, n)().text for n in range(3)]

    def poisoned() -> str:
        text = ""
        for at, chunk in enumerate(four.stream(PROMPTS[1], max_tokens=COUNT, logit_bias=OPEN)):
            text += chunk.text
            if at == 5:
                poison(four, PROMPTS[1])
        return text

    first, failed, third = together(generation(four, 0), poisoned, generation(four, 2))
    assert isinstance(failed, BadBundle)
    assert "not numbers" in str(failed)
    assert [first.text, third.text] == [expected[0], expected[2]]
    for slot in four._sequences.slots:
        slot.session.rewind(0)  # the poisoned rows are overwritten
    assert generation(four, 1)().text == expected[1]


def test_without_memory_to_grow_only_that_one_fails(
    four: LanguageModel, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generation(four, 1)().text
    engine = cpu_engine(four.session)  # type: ignore[arg-type]

    def no_memory(rows: int) -> None:
        raise DoesNotFit(f"there is no memory for a cache of {rows} tokens")

    real = EngineSession.advance

    def advance(self: EngineSession, tokens: Any, *, logits: int = 1) -> Logits:
        if self.length == len(PROMPTS[0]) + 8 and self.tokens[:10] == PROMPTS[0]:
            no_memory(512)
        return real(self, tokens, logits=logits)

    def each(sessions: Sequence[EngineSession], tokens: Sequence[int]) -> list[Logits]:
        if any(one.length == len(PROMPTS[0]) + 8 for one in sessions):
            no_memory(512)  # the run of all needs the rows that one of them asks for
        return together_before(sessions, tokens)

    together_before = EngineSession.advance_each
    monkeypatch.setattr(EngineSession, "advance", advance)
    monkeypatch.setattr(EngineSession, "advance_each", each)
    first, second = together(generation(four, 0), generation(four, 1))
    assert isinstance(first, DoesNotFit)
    assert second.text == expected
    assert engine.batch is not None


def test_growth_of_one_moves_the_others(
    bundle: Path, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with edgelm.load(bundle, threads=1, sequences=4) as lm:
        lengths = (90, 5, 40, 12)
        work = [generation(lm, n, max_tokens=count) for n, count in enumerate(lengths)]
        texts = [reply.text for reply in in_shared_runs(sizes, *work)]
        assert [one().text for one in work] == texts


def test_a_shared_beginning_is_copied_and_then_decoded_together(
    four: LanguageModel, sizes: Sizes
) -> None:
    shared = np.random.default_rng(9).integers(4, 320, 40).tolist()
    prompts = [[*shared, 10 + n] for n in range(4)]
    alone = [four.generate(one, max_tokens=COUNT, logit_bias=OPEN).text for one in prompts]
    replies = in_shared_runs(
        sizes,
        *(lambda one=one: four.generate(one, max_tokens=COUNT, logit_bias=OPEN) for one in prompts),
    )
    assert [reply.text for reply in replies] == alone
    assert all(reply.usage.cached_tokens >= len(shared) for reply in replies)


def test_asyncio(four: LanguageModel, sizes: Sizes) -> None:
    alone = [generation(four, n)().text for n in range(4)]

    async def main() -> list[Reply]:
        return await asyncio.gather(
            *(four.agenerate(one, max_tokens=COUNT, logit_bias=OPEN) for one in PROMPTS)
        )

    def first() -> list[str]:
        return [reply.text for reply in asyncio.run(main())]

    assert in_shared_runs(sizes, first) == [alone]


def test_closing_the_model_ends_all(four: LanguageModel, sizes: Sizes) -> None:
    streams = [four.stream(one, max_tokens=100, logit_bias=OPEN) for one in PROMPTS]

    def first() -> None:
        for at, _ in enumerate(streams[0]):
            if at == 8:
                four.close()

    results = together(first, *(stream.read for stream in streams[1:]))
    assert all(isinstance(one, BadInput) and "closed" in str(one) for one in results)


def test_an_interrupt_of_one_thread_hurts_nobody(
    four: LanguageModel, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that leads a run gets Ctrl-C behind it, before it has given the logits away."""
    alone = [generation(four, n)().text for n in range(2)]
    before = EngineSession.advance_each
    interrupted: list[int] = []

    def once(sessions: Sequence[EngineSession], tokens: Sequence[int]) -> list[Logits]:
        rows = before(sessions, tokens)
        if not interrupted and len(sessions) > 1:
            interrupted.append(threading.get_ident())
            raise KeyboardInterrupt
        return rows

    monkeypatch.setattr(EngineSession, "advance_each", once)

    def interruptible(n: int) -> Callable[[], object]:
        def run() -> object:
            try:
                return generation(four, n)().text
            except KeyboardInterrupt:
                return "interrupted"

        return run

    for _ in range(_ATTEMPTS):
        texts = together(interruptible(0), interruptible(1))
        if interrupted:
            break
    assert len(interrupted) == 1
    assert texts.count("interrupted") == 1
    assert next(text for text in texts if text != "interrupted") in alone
    assert [generation(four, n)().text for n in range(2)] == alone


def test_a_slow_reader_is_not_waited_for(four: LanguageModel) -> None:
    """Its sequence takes part in runs, but the others do not wait for it each time."""
    slow = four.stream(PROMPTS[0], max_tokens=100, logit_bias=OPEN)
    ended = threading.Event()

    def read_slowly() -> None:
        for _ in slow:
            if ended.wait(0.03):
                break

    def others() -> float:
        started = time.perf_counter()
        for n in (1, 2, 3) * 3:
            generation(four, n, max_tokens=40)()
        ended.set()
        return time.perf_counter() - started

    _, seconds = together(read_slowly, others)
    assert isinstance(seconds, float)
    steps = four._sequences.shared_steps
    assert steps is not None
    assert all(one not in steps._expected or one in steps._slow for one in [four.session])


def test_streams_of_one_thread_do_not_wait_for_each_other(
    four: LanguageModel, sizes: Sizes
) -> None:
    streams = [four.stream(one, max_tokens=COUNT, logit_bias=OPEN) for one in PROMPTS[:2]]
    started = time.perf_counter()
    for _ in range(COUNT + 1):
        for stream in streams:
            next(stream)
    assert time.perf_counter() - started < 5, "one wait takes as long"
    assert not sizes


def test_a_long_prompt_does_not_stop_the_others(four: LanguageModel, sizes: Sizes) -> None:
    """Tokens of others come between its chunks."""
    order: list[str] = []
    running = threading.Event()
    real = EngineSession.advance

    def decode() -> None:
        for at, _ in enumerate(four.stream(PROMPTS[0], max_tokens=100, logit_bias=OPEN)):
            order.append("token")
            if at == 3:
                running.set()

    def prefill() -> None:
        running.wait(30)
        four.generate(list(range(4, 104)), max_tokens=1, logit_bias=OPEN)

    def advance(self: EngineSession, tokens: Any, *, logits: int = 1) -> Logits:
        if len(tokens) > 1:
            order.append("chunk")
            time.sleep(0.02)  # as long as a real one, beside which choosing a token is short
        return real(self, tokens, logits=logits)

    chunk = EngineSession.chunk
    try:
        EngineSession.chunk = property(lambda _: 8)  # type: ignore[assignment, method-assign]
        EngineSession.advance = advance  # type: ignore[method-assign]
        together(decode, prefill)
    finally:
        EngineSession.chunk, EngineSession.advance = chunk, real  # type: ignore[method-assign]
    first, last = order.index("chunk", 4), len(order) - 1 - order[::-1].index("chunk")
    between = order[first:last]
    assert "chunk chunk chunk" not in " ".join(between)
