"""Requests that choose adapters: states of two of them never mix."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.errors import BadInput, DoesNotFit
from edgelm.runtime import Chat, LanguageModel, Message
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from tests.runtime.adapters.asking import CHOICES, COUNT, OPEN, PROMPT

Alone = Callable[..., str]
SYSTEM = "The miller waits until the level outside has dropped below the wheel. " * 2


@pytest.fixture
def lm(adapted: Path) -> Iterator[LanguageModel]:
    with edgelm.load(adapted, threads=1) as model:
        yield model


@pytest.fixture
def three(adapted: Path) -> Iterator[LanguageModel]:
    with edgelm.load(adapted, threads=1, sequences=3) as model:
        yield model


def answer(lm: LanguageModel, adapter: str | None) -> tuple[str, int]:
    """A text, and how many tokens of its prompt were known."""
    reply = lm.generate(list(PROMPT), adapter=adapter, max_tokens=COUNT, logit_bias=OPEN)
    return reply.text, reply.usage.cached_tokens


def test_each_answers_differently(alone: Alone) -> None:
    assert len({alone(one) for one in CHOICES}) == len(CHOICES)


def test_a_prefix_is_reused_with_the_same_adapter_alone(lm: LanguageModel, alone: Alone) -> None:
    for adapter in (None, "pirate", "poet", "pirate", None):
        assert answer(lm, adapter) == (alone(adapter), 0)
        assert answer(lm, adapter) == (alone(adapter), len(PROMPT) - 1)


def test_sequences_copy_from_those_with_the_same_adapter(
    three: LanguageModel, alone: Alone
) -> None:
    for adapter in CHOICES:
        assert answer(three, adapter) == (alone(adapter), 0)
    for adapter in CHOICES:
        assert answer(three, adapter) == (alone(adapter), len(PROMPT) - 1)
    # A second one at the same time gets a copy of what the first one holds.
    with three.stream(list(PROMPT), adapter="poet", max_tokens=COUNT, logit_bias=OPEN) as first:
        next(first)
        assert answer(three, "poet") == (alone("poet"), len(PROMPT) - 1)


@pytest.mark.parametrize("batching", [True, False])
def test_threads_with_different_adapters(adapted: Path, alone: Alone, batching: bool) -> None:
    jobs = [(choice, PROMPT[n:]) for n in range(2) for choice in (*CHOICES, "pirate")]
    texts: dict[int, str] = {}
    with edgelm.load(adapted, threads=1, sequences=4, batching=batching) as lm:

        def run(number: int) -> None:
            adapter, prompt = jobs[number]
            reply = lm.generate(list(prompt), adapter=adapter, max_tokens=COUNT, logit_bias=OPEN)
            texts[number] = reply.text

        threads = [threading.Thread(target=run, args=[n]) for n in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [texts[n] for n in range(len(jobs))] == [alone(*job) for job in jobs]


def test_streams_by_turns(three: LanguageModel, alone: Alone) -> None:
    streams = [
        three.stream(list(PROMPT), adapter=one, max_tokens=COUNT, logit_bias=OPEN)
        for one in CHOICES
    ]
    for _ in range(COUNT + 1):
        for stream in streams:
            next(stream)
    assert [stream.reply.text for stream in streams] == [alone(one) for one in CHOICES]


def test_a_sequence_that_is_taken_away_is_computed_again(lm: LanguageModel, alone: Alone) -> None:
    with lm.stream(list(PROMPT), adapter="poet", max_tokens=COUNT, logit_bias=OPEN) as stream:
        next(stream)
        assert answer(lm, "pirate")[0] == alone("pirate")  # takes the only sequence
        assert stream.read().text == alone("poet")


def test_async(lm: LanguageModel, alone: Alone) -> None:
    work = lm.agenerate(list(PROMPT), adapter="poet", max_tokens=COUNT, logit_bias=OPEN)
    assert asyncio.run(work).text == alone("poet")


@pytest.mark.usefixtures("drafts_pay")
def test_drafted_tokens_are_checked_with_the_adapter(lm: LanguageModel) -> None:
    repeating = list(PROMPT[:6]) * 5
    for adapter in CHOICES:
        texts = [
            lm.generate(
                repeating, adapter=adapter, max_tokens=40, logit_bias=OPEN, speculation=mode
            ).text
            for mode in ("off", "lookup")
        ]
        assert texts[0] == texts[1]
    assert len({id(lm._sequences.speculation_of(lm._adapters.find(one))) for one in CHOICES}) == 3


def test_the_prompt_cache_is_by_adapter(adapted: Path, tmp_path: Path) -> None:
    messages: list[Message] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Why?"},
    ]
    expected = {}
    for adapter in CHOICES:
        with edgelm.load(adapted, threads=1, prompt_cache=tmp_path) as lm:
            reply = lm.generate(messages, adapter=adapter, max_tokens=4)
            assert reply.usage.cached_tokens == 0
            expected[adapter] = reply.text
    assert len(list(tmp_path.iterdir())) == len(CHOICES)
    for adapter in CHOICES:
        with edgelm.load(adapted, threads=1, prompt_cache=tmp_path) as lm:
            reply = lm.generate(messages, adapter=adapter, max_tokens=4)
            assert reply.usage.cached_tokens > 64
            assert reply.text == expected[adapter]


def test_a_chat_has_an_adapter(lm: LanguageModel) -> None:
    chat = lm.chat("Be brief.", adapter="poet")
    said = chat.send("Why?", max_tokens=4).read().text
    asked: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    assert said == lm.generate(asked, adapter="poet", max_tokens=4).text
    assert chat.fork().adapter == "poet"
    base = lm.generate(asked, max_tokens=4).text
    chat.rewind()
    assert chat.send("Why?", max_tokens=4, adapter=None).read().text == base != said


def test_a_saved_chat_continues_with_its_adapter(
    lm: LanguageModel, adapted: Path, tmp_path: Path
) -> None:
    chat = lm.chat("Be brief.", adapter="poet")
    chat.send("Why?", max_tokens=4).read()
    saved = chat.save(tmp_path / "poet.session")
    assert saved.tokens > 10
    expected = chat.send("How?", max_tokens=6).read().text
    with edgelm.load(adapted, threads=1) as other:
        continued = other.chat(session=saved.path)
        assert continued.adapter == "poet"
        reply = continued.send("How?", max_tokens=6).read()
        assert reply.text == expected
        assert reply.usage.cached_tokens >= saved.tokens - 1


def test_a_saved_chat_of_another_bundles_adapter(
    lm: LanguageModel, bundle: Path, tmp_path: Path
) -> None:
    chat = lm.chat("Be brief.", adapter="poet")
    chat.send("Why?", max_tokens=4).read()
    path = chat.save(tmp_path / "poet.session").path
    with edgelm.load(bundle, threads=1) as plain:
        with pytest.raises(BadInput, match="unknown adapter 'poet'; this bundle has none"):
            plain.chat(session=path)
        assert Chat.load(plain, path, state=False).adapter is None
    pirate = lm._adapters["pirate"]
    lm._adapters._loaded["poet"] = pirate  # as if its weights had changed
    with pytest.raises(BadInput, match="another adapter, or with one of other weights"):
        lm.chat(session=path)


def test_an_adapter_that_cannot_be_bound_is_not_taken_for_the_one_in_use(
    lm: LanguageModel, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(engine: OrtEngine, size: int) -> None:
        raise DoesNotFit("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(OrtEngine, "_bind_step", failing)
        with pytest.raises(DoesNotFit):
            lm.session.use_adapter(lm.adapter("pirate"))
    assert lm.session.adapter is None
    assert answer(lm, None) == (alone(None), 0)
    assert answer(lm, "pirate") == (alone("pirate"), 0)
