"""What a person types, with line editing, history and messages of several lines.

Python's readline does the editing: it is part of every Python on Linux, and pastes of several lines
stay one message ("bracketed paste"). prompt_toolkit would add 3 MB to a device for little more.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from edgelm.errors import BadInput
from edgelm.files.user_folders import state_folder
from edgelm.runtime.generation.interrupts import Interrupts

_HISTORY_LINES = 1000
_QUOTES = '"""'


class LineEditor:
    """Reads messages.

    Args:
        interrupts: Ctrl-C clears the line; a second one at once ends the program.
        commands: completed by the Tab key.
        history: keep what was typed in a file, for the next time.
    """

    def __init__(
        self, interrupts: Interrupts, commands: Sequence[str] = (), *, history: bool = True
    ) -> None:
        self._interrupts = interrupts
        self._terminal = sys.stdin.isatty()
        self._file = state_folder() / "edge-run-history" if history else None
        self._readline = self._set_up(commands) if self._terminal else None

    def messages(self) -> Iterator[str]:
        """What is typed, until the end of the input.

        Raises:
            BadInput: the input is not text.
        """
        presses = 0
        while True:
            try:
                text = self._message()
            except EOFError:
                print()
                return
            except UnicodeDecodeError as error:
                raise BadInput(f"standard input is not text: {error}") from None
            except KeyboardInterrupt:
                presses += 1
                if presses > 1:
                    raise
                print("\n(Ctrl-C again, or Ctrl-D, ends)")
                continue
            presses = 0
            yield text

    def save(self) -> None:
        """Write the history; a folder that cannot be written loses it."""
        if self._readline is None or self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._readline.set_history_length(_HISTORY_LINES)
            # Only the user may read what was typed.
            os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.write_history_file(str(self._file))

    def _message(self) -> str:
        line = self._line("> ")
        if not self._terminal:
            return line
        if line.lstrip().startswith(_QUOTES):
            return self._quoted(line.lstrip().removeprefix(_QUOTES))
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{self._line('... ')}"
        return line

    def _quoted(self, text: str) -> str:
        while not text.rstrip().endswith(_QUOTES):
            text = f"{text}\n{self._line('... ')}"
        return text.rstrip().removesuffix(_QUOTES).strip("\n")

    def _line(self, prompt: str) -> str:
        with self._interrupts.raised():
            return input(prompt if self._terminal else "")

    def _set_up(self, commands: Sequence[str]) -> ModuleType | None:
        try:
            import readline
        except ImportError:  # a Python without it: no editing
            return None
        if os.environ.get("TERM") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("tab: complete")
        readline.set_completer_delims(" \n")
        readline.set_completer(_completer(commands))
        if self._file is not None and self._file.is_file():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                readline.read_history_file(str(self._file))
        return readline


def _completer(commands: Sequence[str]) -> Callable[[str, int], str | None]:
    def complete(text: str, state: int) -> str | None:
        found = [name for name in commands if text.startswith("/") and name.startswith(text)]
        return found[state] if state < len(found) else None

    return complete
