"""Chats: what joins the messages, and that conversations never meet."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.errors import BadInput, Busy, ContextFull
from edgelm.runtime import LanguageModel, Message

COUNT = 6


@pytest.fixture
def two(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        yield lm


def roles(messages: list[Message]) -> list[str]:
    return [message["role"] for message in messages]


def test_a_turn_joins_the_messages(lm: LanguageModel) -> None:
    chat = lm.chat(system="Be brief.")
    reply = chat.send("Why?", max_tokens=COUNT).read()
    expected: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": reply.text},
    ]
    assert chat.messages == expected
    assert lm.generate(expected[:2], max_tokens=COUNT).text == reply.text
    assert chat.tokens == len(lm.chat_tokens(expected))


def test_only_what_is_new_is_computed(lm: LanguageModel) -> None:
    chat = lm.chat()
    first = chat.send("Why is it so?", max_tokens=COUNT).read()
    second = chat.send("And then?", max_tokens=COUNT).read()
    assert second.usage.cached_tokens >= first.usage.prompt_tokens


def test_conversations_by_turns_never_meet(two: LanguageModel) -> None:
    def talk(chats: list[edgelm.Chat]) -> list[list[Message]]:
        for said in ("One.", "Two.", "Three."):
            for number, chat in enumerate(chats):
                chat.send(f"{said} {number}", max_tokens=COUNT).read()
        return [chat.messages for chat in chats]

    together = talk([two.chat() for _ in range(3)])  # more than there are sequences
    chats = [two.chat() for _ in range(3)]
    for number, chat in enumerate(chats):
        for said in ("One.", "Two.", "Three."):
            chat.send(f"{said} {number}", max_tokens=COUNT).read()
    assert together == [chat.messages for chat in chats]


def test_forks_go_their_own_way(lm: LanguageModel) -> None:
    chat = lm.chat()
    chat.send("One.", max_tokens=COUNT).read()
    fork = chat.fork()
    fork.send("Two.", max_tokens=COUNT).read()
    assert len(chat.messages) == 2
    assert fork.messages[:2] == chat.messages
    chat.messages.clear()  # a copy
    assert len(chat.messages) == 2


def test_rewind_and_reset(lm: LanguageModel) -> None:
    chat = lm.chat(system="Be brief.")
    for said in ("One.", "Two.", "Three."):
        chat.send(said, max_tokens=COUNT).read()
    chat.rewind()
    assert roles(chat.messages) == ["system", "user", "assistant", "user", "assistant"]
    before = chat.messages
    text = chat.send("Three.", max_tokens=COUNT).read().text
    chat.rewind(2)
    assert len(chat.messages) == 3
    chat.send("Two.", max_tokens=COUNT).read()
    assert chat.messages == before
    assert chat.send("Three.", max_tokens=COUNT).read().text == text
    with pytest.raises(BadInput, match="cannot rewind 4 turns: the conversation has 3"):
        chat.rewind(4)
    chat.reset()
    assert roles(chat.messages) == ["system"]


def test_a_cancelled_answer_joins_as_far_as_it_came(lm: LanguageModel) -> None:
    chat = lm.chat()
    stream = chat.send("Why?", max_tokens=50)
    texts = [next(stream).text for _ in range(3)]
    stream.cancel()
    last = next(stream)
    assert last.finish_reason == "cancelled"
    assert chat.messages[-1]["content"] == "".join(texts) + last.text


def test_an_abandoned_answer_is_ended_by_the_next_send(lm: LanguageModel) -> None:
    chat = lm.chat()
    for _ in chat.send("Why?", max_tokens=50):
        break
    chat.send("And?", max_tokens=COUNT).read()
    assert roles(chat.messages) == ["user", "assistant"] * 2


def test_an_answer_that_was_never_read_is_forgotten(lm: LanguageModel) -> None:
    chat = lm.chat()
    chat.send("Why?")
    chat.send("And?", max_tokens=COUNT).read()
    assert chat.messages[0]["content"] == "And?"


def test_after_an_error_the_messages_are_as_before(lm: LanguageModel) -> None:
    chat = lm.chat()
    with pytest.raises(ContextFull):
        chat.send("word " * 500)
    with pytest.raises(BadInput):
        chat.send([{"role": "nobody", "content": "a"}])

    def explode(_: object, __: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        chat.send("Why?", logits_processors=[explode]).read()  # type: ignore[list-item]
    assert chat.messages == []


def test_two_threads_in_one_chat(lm: LanguageModel) -> None:
    chat = lm.chat()
    begun, resume = threading.Event(), threading.Event()

    def hold(_: object, logits: object) -> object:
        begun.set()
        resume.wait(60)
        return logits

    stream = chat.send("Why?", max_tokens=2, logits_processors=[hold])  # type: ignore[list-item]
    reader = threading.Thread(target=stream.read)
    reader.start()
    assert begun.wait(60)
    for use in (lambda: chat.send("And?"), chat.rewind, chat.reset):
        with pytest.raises(Busy, match="is being read"):
            use()
    resume.set()
    reader.join(60)
    assert len(chat.messages) == 2


def test_a_chat_begins_with_one_of_the_two(lm: LanguageModel) -> None:
    with pytest.raises(BadInput, match="either `system` or `messages`"):
        lm.chat("Be brief.", messages=[{"role": "user", "content": "a"}])


def test_a_chat_has_its_messages_for_itself(lm: LanguageModel) -> None:
    first, said = Message(role="system", content="s"), Message(role="user", content="a")
    chat = lm.chat(messages=[first])
    chat.send(said, max_tokens=2).read()
    before = chat.messages
    other = chat.fork()
    for message in (first, said, *chat.messages, *other.messages):
        message["content"] = "changed"
    assert chat.messages == other.messages == before
