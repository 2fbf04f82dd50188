"""One model, several users: texts never mix, and every misuse has an error of its own."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.errors import BadInput, Busy
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.session import Logits

PROMPTS = ["The miller", "Why is the sky", "Garnets up to", "wheel"]
COUNT = 12


@pytest.fixture(scope="module")
def alone(bundle: Path) -> dict[str, str]:
    """What each prompt gives on a model that nobody else uses."""
    with edgelm.load(bundle, threads=1) as lm:
        return {prompt: lm.generate(prompt, max_tokens=COUNT).text for prompt in PROMPTS}


def test_a_stream_that_lost_its_sequence_continues_where_it_was(
    lm: LanguageModel, alone: dict[str, str]
) -> None:
    stream = lm.stream(PROMPTS[0], max_tokens=COUNT)
    next(stream)
    assert lm.generate(PROMPTS[1], max_tokens=COUNT).text == alone[PROMPTS[1]]
    assert stream.read().text == alone[PROMPTS[0]]


def test_streams_by_turns(lm: LanguageModel, alone: dict[str, str]) -> None:
    streams = [lm.stream(prompt, max_tokens=COUNT) for prompt in PROMPTS]
    for _ in range(COUNT + 1):
        for stream in streams:
            next(stream, None)
    assert [stream.reply.text for stream in streams] == [alone[prompt] for prompt in PROMPTS]


def test_a_stream_begins_when_it_is_asked(lm: LanguageModel, alone: dict[str, str]) -> None:
    first, second = (lm.stream(prompt, max_tokens=COUNT) for prompt in PROMPTS[:2])
    assert second.read().text == alone[PROMPTS[1]]
    assert first.read().text == alone[PROMPTS[0]]


def test_a_finished_stream_is_not_overtaken(lm: LanguageModel) -> None:
    chunks = lm.stream([40, 41], max_tokens=2)
    while next(chunks).finish_reason is None:
        pass
    lm.generate(PROMPTS[0], max_tokens=1)
    assert list(chunks) == []


def test_dropped_closed_and_half_read_streams_block_nobody(
    lm: LanguageModel, alone: dict[str, str]
) -> None:
    dropped = lm.stream(PROMPTS[1])
    next(dropped)
    del dropped
    gc.collect()
    closed = lm.stream([40, 41])
    next(closed)
    closed.close()
    assert list(closed) == []
    for _ in lm.stream(PROMPTS[2]):
        break
    assert lm.generate(PROMPTS[0], max_tokens=COUNT).text == alone[PROMPTS[0]]


def test_threads_that_generate_wait_for_each_other(
    lm: LanguageModel, alone: dict[str, str]
) -> None:
    wrong: list[object] = []

    def work(offset: int) -> None:
        for n in range(8):
            prompt = PROMPTS[(n + offset) % len(PROMPTS)]
            try:
                text = lm.generate(prompt, max_tokens=COUNT).text
            except BaseException as error:
                wrong.append(error)
            else:
                wrong.extend([text] if text != alone[prompt] else [])

    run_together([lambda n=n: work(n) for n in range(4)])
    assert wrong == []


def test_threads_that_stream_wait_for_each_other(lm: LanguageModel, alone: dict[str, str]) -> None:
    wrong: list[object] = []

    def work(offset: int) -> None:
        for n in range(8):
            prompt = PROMPTS[(n + offset) % len(PROMPTS)]
            try:
                text = lm.stream(prompt, max_tokens=COUNT).read().text
            except BaseException as error:
                wrong.append(error)
            else:
                wrong.extend([text] if text != alone[prompt] else [])

    run_together([lambda n=n: work(n) for n in range(4)])
    assert wrong == []


def run_together(bodies: list[object]) -> None:
    threads = [threading.Thread(target=body) for body in bodies]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_model_is_not_asked_from_within_its_own_step(lm: LanguageModel) -> None:
    def ask_again(_: object, logits: Logits) -> Logits:
        lm.generate("a", max_tokens=1)
        return logits

    with pytest.raises(Busy, match="from within its own"):
        lm.generate("b", max_tokens=3, logits_processors=[ask_again])
    assert lm.generate("b", max_tokens=3).finish_reason == "length"


def test_using_the_session_itself_is_noticed(lm: LanguageModel, alone: dict[str, str]) -> None:
    lm.generate(PROMPTS[0], max_tokens=COUNT)
    lm.session.rewind(0)
    lm.session.advance(np.arange(5, 25))
    assert lm.generate(PROMPTS[0], max_tokens=COUNT).text == alone[PROMPTS[0]]


def after_close(lm: LanguageModel) -> Iterator[object]:
    hello: list[edgelm.Message] = [{"role": "user", "content": "hello"}]
    yield lambda: lm.generate("a")
    yield lambda: lm.generate(hello)
    yield lambda: lm.stream("a")
    yield lambda: lm.chat().send("hello")
    yield lambda: lm.stream([1, 2])
    yield lambda: lm.chat_tokens(hello)
    yield lambda: lm.session.advance(np.array([5]))
    yield lambda: lm.session.rewind(0)


def test_a_closed_model_says_so(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1) as lm:
        stream = lm.stream("a")
        next(stream)
    for use in after_close(lm):
        with pytest.raises(BadInput, match="this model is closed; load it again"):
            use()  # type: ignore[operator]
    with pytest.raises(BadInput, match="this model is closed"):
        list(stream)
    assert "LanguageModel" in repr(lm)
    lm.close()


@pytest.mark.parametrize("whole", [True, False], ids=["generate", "stream"])
def test_closing_while_another_thread_generates(bundle: Path, whole: bool) -> None:
    lm = edgelm.load(bundle, threads=1)
    begun, ends = threading.Event(), []

    def asked() -> bool:
        begun.set()
        return False

    def work() -> None:
        try:
            while True:
                if whole:
                    lm.generate("a", cancel=asked)
                else:
                    list(lm.stream("a", cancel=asked))
        except BadInput as error:
            ends.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    lm.close()
    thread.join(60)
    assert ends == ["this model is closed; load it again"]


def test_closing_from_within_cancel(bundle: Path) -> None:
    lm = edgelm.load(bundle, threads=1)

    def close() -> bool:
        lm.close()
        return False

    with pytest.raises(BadInput, match="this model is closed"):
        lm.generate("a", max_tokens=5, cancel=close)


def test_a_model_that_cannot_be_made_closes_its_session(bundle: Path, tmp_path: Path) -> None:
    with edgelm.load(bundle, threads=1) as lm:
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(edgelm.EdgeLMError, match="is not a tokenizer"):
            LanguageModel(tmp_path, lm.manifest, lm.session)
        with pytest.raises(BadInput, match="this model is closed"):
            lm.session.advance(np.array([5]))
