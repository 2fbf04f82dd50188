"""`edge-run` on a terminal: the conversation a person has."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime import LanguageModel, Message
from edgelm.runtime.generation.interrupts import Interrupts
from edgelm.runtime.terminal.printer import Printer

pty = pytest.importorskip("pty", reason="pseudo-terminals are a matter of POSIX")
PATIENCE = 60.0


class Terminal:
    """The person's side of a pseudo-terminal on which edge-run runs."""

    def __init__(self, *arguments: str, state: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgelm.runtime.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", "PYTHONUTF8": "1", "XDG_STATE_HOME": state},
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, end: str) -> str:
        text = b""
        while not text.decode(errors="replace").endswith(end):
            ready, _, _ = select.select([self.master], [], [], PATIENCE)
            assert ready, f"waited for {end!r}, got {text!r}"
            text += os.read(self.master, 4096)
        return text.decode().replace("\r\n", "\n")

    def say(self, line: str) -> str:
        """Type a line; return what is printed until the next prompt, without the echo."""
        os.write(self.master, f"{line}\n".encode())
        return self.read_until("\n> ").removeprefix(f"{line}\n").removesuffix("\n> ")

    def interrupt(self) -> None:
        """Press Ctrl-C; once more where it came between the prompt and the read behind it."""
        os.kill(self.process.pid, signal.SIGINT)
        while not select.select([self.master], [], [], 5.0)[0] and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(bundle: Path, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(str(bundle), "-n", "8", state=str(tmp_path))
    yield terminal
    terminal.close()


def answer(lm: LanguageModel, *turns: str) -> str:
    messages: list[Message] = []
    text = ""
    for turn in turns:
        messages.append(Message(role="user", content=turn))
        text = lm.generate(messages, max_tokens=8).text
        messages.append(Message(role="assistant", content=text))
    return shown(text)


def shown(text: str) -> str:
    return text.replace("\r\n", "\n") + "\n(stopped after 8 tokens; -n allows more)"


def test_conversation(terminal: Terminal, bundle: Path) -> None:
    with edgelm.load(bundle) as lm:
        banner = terminal.read_until("> ")
        assert "for cpu on onnxruntime, context 128 tokens, greedy decoding" in banner
        assert "/help lists the commands" in banner
        assert terminal.say("hello") == answer(lm, "hello")
        assert terminal.say("go on") == answer(lm, "hello", "go on")
        assert "Ctrl-C stops an answer" in terminal.say("/help")
        assert terminal.say("/reset") == "> "
        assert "unknown command /reste" in terminal.say("/reste")
        assert terminal.say("go on") == answer(lm, "go on")
    os.write(terminal.master, b"\x04")  # Ctrl-D
    assert terminal.process.wait(PATIENCE) == 0


def test_a_full_context_keeps_the_conversation_going(terminal: Terminal, bundle: Path) -> None:
    terminal.read_until("> ")
    said = terminal.say("long " * 60)
    assert "the context holds 128" in said
    assert "/reset starts over" in said
    with edgelm.load(bundle) as lm:
        assert terminal.say("hello") == answer(lm, "hello")


def test_ctrl_c_stops_the_answer_and_not_the_program(
    lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        presses = iter(range(100))

        def cancelled() -> bool:
            if next(presses) == 6:
                signal.raise_signal(signal.SIGINT)
            return interrupts.pressed()

        stream = lm.stream([40, 41], cancel=cancelled)
        reply = Printer().show(stream, stats=True)
    out, err = capsys.readouterr()
    assert out == reply.text + "\n"
    assert reply.text
    assert "stop reason: cancelled" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_raises() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_at_a_prompt_ctrl_c_raises_at_once_and_earlier_presses_are_forgotten() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with interrupts.raised():
            assert not interrupts.pressed()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_at_the_prompt_keeps_the_conversation_and_a_second_one_ends(
    terminal: Terminal, bundle: Path
) -> None:
    terminal.read_until("> ")
    terminal.say("hello")
    os.write(terminal.master, b"half a line")
    terminal.read_until("half a line")
    terminal.interrupt()
    assert "Ctrl-C again" in terminal.read_until("\n> ")
    with edgelm.load(bundle) as lm:
        assert terminal.say("go on") == answer(lm, "hello", "go on")
    terminal.interrupt()
    terminal.read_until("\n> ")
    terminal.interrupt()
    assert terminal.process.wait(PATIENCE) == 130
