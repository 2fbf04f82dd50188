"""The commands of a conversation, without a terminal."""

from pathlib import Path

import pytest

from edgelm.errors import BadInput, ContextFull
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.interrupts import Interrupts
from edgelm.runtime.terminal.conversation import COMMANDS, HELP, Conversation
from edgelm.runtime.terminal.printer import Printer
from edgelm.runtime.terminal.settings import Settings

TOKENS = 4


@pytest.fixture
def conversation(lm: LanguageModel) -> Conversation:
    settings = Settings({"max-tokens": TOKENS})
    return Conversation(lm, settings, Printer(), Interrupts(), system="Be brief.")


def roles(conversation: Conversation) -> list[str]:
    return [message["role"] for message in conversation.messages]


def test_help_names_every_command() -> None:
    assert all(f"\n{name}" in f"\n{HELP}" for name in COMMANDS)


def test_retry_and_undo(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    conversation.handle("a")
    conversation.handle("b")
    before = list(conversation.messages)
    capsys.readouterr()
    conversation.handle("/retry")
    assert conversation.messages == before
    assert capsys.readouterr().out == f"{before[-1]['content']}\n"
    conversation.handle("/undo")
    assert conversation.messages == before[:3]
    assert capsys.readouterr().out == "(forgotten: b)\n"


def test_a_retry_that_fails_changes_nothing(conversation: Conversation) -> None:
    conversation.handle("a")
    before = list(conversation.messages)
    conversation.handle("/set temperature -1")
    with pytest.raises(BadInput, match="temperature is -1"):
        conversation.handle("/retry")
    assert conversation.messages == before


@pytest.mark.parametrize("command", ["/retry", "/undo"])
def test_nothing_to_take_back(conversation: Conversation, command: str) -> None:
    with pytest.raises(BadInput, match="no message yet"):
        conversation.handle(command)


def test_a_system_message_starts_over(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.handle("a")
    conversation.handle("/system Be kind.")
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]
    conversation.handle("/system")
    assert capsys.readouterr().out.endswith("Be kind.\nBe kind.\n")


def test_settings(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    conversation.handle("/set top-p 0.5")
    conversation.handle("/set temperature 1.5")
    conversation.handle("/set top_k 7")
    options = conversation.settings.options(chat=True)
    assert (options["top_p"], options["temperature"], options["top_k"]) == (0.5, 1.5, 7)
    conversation.handle("/set temperature default")
    assert "temperature" not in conversation.settings.options(chat=True)
    conversation.handle("/set thinking off")
    assert conversation.settings.template == {"enable_thinking": False}
    capsys.readouterr()
    conversation.handle("/set")
    assert "top-k                7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/set heat 1", "unknown setting 'heat'; there are: max-tokens, temperature"),
        ("/set seed x", "seed is 'x', expected a whole number, or default"),
        ("/set top-p much", "top-p is 'much', expected a number"),
        ("/set stats 5", "stats is '5', expected on or off"),
        ("/set seed", "needs a value"),
        ("/hepl", "unknown command /hepl"),
        ("/save", "needs the name of a file"),
        ("/load", "needs the name of a file"),
        ("/save /dev/null/x", "/dev/null/x cannot be written"),
        ("/load /dev/null/x", "/dev/null/x"),
    ],
)
def test_what_cannot_be_done(conversation: Conversation, command: str, message: str) -> None:
    before = list(conversation.messages)
    with pytest.raises(BadInput, match=message):
        conversation.handle(command)
    assert conversation.messages == before


def test_a_text_with_a_slash(conversation: Conversation) -> None:
    conversation.handle("//etc/passwd is a file")
    assert conversation.messages[1]["content"] == "/etc/passwd is a file"


def test_save_and_load(
    conversation: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.handle("a")
    saved = list(conversation.messages)
    conversation.handle(f"/save {tmp_path / 'my chat'}")
    conversation.handle("/system Other.")
    conversation.handle(f"/load {tmp_path / 'my chat'}")
    assert conversation.messages == saved
    conversation.handle("/reset")
    assert conversation.messages == saved[:1]
    assert "(loaded 3 messages)" in capsys.readouterr().out


def test_the_oldest_turns_are_dropped(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        conversation.handle(f"message {number}")
    assert roles(conversation)[:2] == ["system", "user"]
    assert conversation.messages[-2]["content"] == "message 7"
    assert conversation.messages[1]["content"] != "message 0"
    err = capsys.readouterr().err
    assert "oldest messages are dropped: the context holds 128 tokens)" in err
    assert err.count("of the context is used") == 1


def test_a_message_that_never_fits_leaves_the_conversation(conversation: Conversation) -> None:
    conversation.handle("a")
    with pytest.raises(ContextFull):
        conversation.handle("long " * 60)
    assert roles(conversation) == ["system", "user", "assistant"]


def test_an_answer_that_was_stopped_at_once_is_not_kept(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupts, "pressed", lambda _: True)
    conversation.handle("a")
    assert roles(conversation) == ["system"]


def test_tokens_and_exit(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    conversation.handle("/tokens")
    conversation.handle("   ")
    conversation.handle("/exit")
    assert capsys.readouterr().out.endswith(" of 128 tokens\n")
    assert conversation.ended
