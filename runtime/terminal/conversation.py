"""A conversation at a terminal: messages, and commands that begin with a slash."""

import sys
from collections.abc import Callable
from pathlib import Path

from edgelm.errors import BadInput
from edgelm.runtime.conversation import Chat
from edgelm.runtime.generation.interrupts import Interrupts
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.terminal.printer import Printer
from edgelm.runtime.terminal.settings import Settings
from edgelm.runtime.text.messages import Message

HELP = """\
/help                this list
/system [TEXT]       show or set the system message; the conversation starts over
/set [NAME VALUE]    show the settings, or change one; VALUE default removes it
/retry               answer the last message again
/undo                forget the last message and its answer
/reset               forget the conversation
/tokens              tokens of the conversation, and of the context
/save FILE           save the conversation
/load FILE           continue a saved one
/exit                end (or Ctrl-D)
A line that ends with \\ continues on the next one; so do lines between \"\"\".
A message that begins with / is written with // at its beginning.
Ctrl-C stops an answer; at the prompt it clears the line, twice it ends."""

_NEARLY_FULL = 0.8


class Conversation:
    """Messages of a person and a model.

    Args:
        model: a model with a chat template.
        settings: of its answers.
        printer: of its answers.
        interrupts: stop an answer.
        system: the system message.

    Raises:
        BadInput: the model has no chat template.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: Settings,
        printer: Printer,
        interrupts: Interrupts,
        *,
        system: str | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.messages: list[Message] = []
        self.ended = False
        self._printer = printer
        self._interrupts = interrupts
        self._system = system
        self._warned = False
        model.chat()  # raises where the model has no chat template
        self._reset("")

    def handle(self, text: str) -> None:
        """Answer a message, or obey a command.

        Raises:
            BadInput: what cannot be done.
            ContextFull: a message that is longer than the context.
        """
        if not text.strip():
            return
        if text.startswith("//") or not text.startswith("/"):
            self._answer(text.removeprefix("/") if text.startswith("//") else text)
            return
        name, _, rest = text.strip().partition(" ")
        if name not in COMMANDS:
            raise BadInput(
                f"unknown command {name}; /help lists the commands; a message that begins with / "
                "is typed with //"
            )
        COMMANDS[name](self, rest.strip())

    def _answer(self, text: str) -> None:
        before = list(self.messages)
        self.messages.append(Message(role="user", content=text))
        try:
            self._make_room()
            options = self.settings.options(chat=True)
            options["cancel"] = self._interrupts.pressed
            with self.model.stream(self.messages, **options) as stream:
                reply = self._printer.show(stream, stats=self.settings.stats)
        except BaseException:
            self.messages = before
            raise
        if reply.text or reply.tool_calls:
            self.messages.append(reply.message)
        else:  # it was stopped before it said anything
            self.messages = before
        self._warn()

    def _make_room(self) -> None:
        """Drop the oldest turns until the conversation and some answer fit."""
        room = min(int(self.settings.values.get("max-tokens", 256)), self.model.context // 4)
        first = self._first_turn()
        dropped = 0
        while self._tokens() + room > self.model.context and self._first_turn(first + 1) > 0:
            end = self._first_turn(first + 1)
            dropped += end - first
            del self.messages[first:end]
        if dropped:
            print(
                f"(the {dropped} oldest messages are dropped: the context holds "
                f"{self.model.context} tokens)",
                file=sys.stderr,
            )

    def _first_turn(self, start: int = 0) -> int:
        """Index of the first message of the user from `start` on; -1 if there is none."""
        turns = (n for n in range(start, len(self.messages)) if self._is_user(n))
        return next(turns, -1)

    def _is_user(self, index: int) -> bool:
        return self.messages[index]["role"] == "user"

    def _warn(self) -> None:
        used = self._tokens() / self.model.context
        if used > _NEARLY_FULL and not self._warned:
            print(
                f"({used:.0%} of the context is used; the oldest messages are dropped when it is "
                "full, /reset starts over)",
                file=sys.stderr,
            )
            self._warned = True

    def _tokens(self) -> int:
        if not self.messages:
            return 0
        tools = self.settings.fixed.get("tools")
        return len(self.model.chat_tokens(self.messages, tools=tools, **self.settings.template))

    def _help(self, _: str) -> None:
        print(HELP)

    def _exit(self, _: str) -> None:
        self.ended = True

    def _reset(self, _: str) -> None:
        system = [Message(role="system", content=self._system)] if self._system else []
        self.messages, self._warned = system, False

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
            self._reset("")
        print(self._system or "(no system message)")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name and not value.strip():
            raise BadInput(f"/set {name} needs a value, or default")
        if name:
            self.settings.set(name.replace("_", "-"), value.strip())
        else:
            print("\n".join(self.settings.lines()))

    def _retry(self, _: str) -> None:
        before = list(self.messages)
        try:
            self._answer(self._take_back())
        except BaseException:
            self.messages = before
            raise

    def _undo(self, _: str) -> None:
        print(f"(forgotten: {self._take_back()[:60]})")

    def _take_back(self) -> str:
        """Remove the last turn; return what the user had said."""
        turns = [n for n in range(len(self.messages)) if self._is_user(n)]
        if not turns:
            raise BadInput("the conversation has no message yet")
        content = self.messages[turns[-1]]["content"]
        del self.messages[turns[-1] :]
        return str(content)

    def _count(self, _: str) -> None:
        print(f"{self._tokens()} of {self.model.context} tokens")

    def _save(self, path: str) -> None:
        if not path:
            raise BadInput("/save needs the name of a file")
        adapter = self.settings.values.get("adapter")
        chat = self.model.chat(messages=self.messages, adapter=adapter, **self.settings.template)
        try:
            chat.save(Path(path))
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
        print(f"(saved {len(self.messages)} messages to {path})")

    def _load(self, path: str) -> None:
        if not path:
            raise BadInput("/load needs the name of a file")
        try:
            chat = self.model.chat(session=Path(path))
        except BadInput as error:
            chat = Chat.load(self.model, Path(path), state=False)
            print(f"(only the messages are used: {error})", file=sys.stderr)
        self.messages, self._warned = chat.messages, False
        self.settings.values.pop("adapter", None)
        if chat.adapter is not None:
            self.settings.values["adapter"] = chat.adapter
        first = self.messages[0] if self.messages else None
        self._system = str(first["content"]) if first and first["role"] == "system" else None
        print(f"(loaded {len(self.messages)} messages)")


COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "/help": Conversation._help,
    "/system": Conversation._set_system,
    "/set": Conversation._set,
    "/retry": Conversation._retry,
    "/undo": Conversation._undo,
    "/reset": Conversation._reset,
    "/tokens": Conversation._count,
    "/save": Conversation._save,
    "/load": Conversation._load,
    "/exit": Conversation._exit,
}
