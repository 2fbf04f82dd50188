"""A conversation: its messages, and answers to them.

A chat owns its messages. The model's state after them stays in one of the model's sequences until
another request needs that sequence; it is then recomputed with the next answer. Any number of chats
can share a model, and none sees the messages of another.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgelm.errors import BadInput, Busy
from edgelm.python310 import Self, Unpack
from edgelm.runtime.engines.session import CacheRows, Tokens
from edgelm.runtime.generation.async_stream import AsyncStream
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.saved.session_file import (
    Identity,
    SavedSession,
    read_header,
    read_session,
    write_session,
)
from edgelm.runtime.text.chat import Message, check_messages
from edgelm.runtime.text.messages import plain
from edgelm.runtime.text.template_arguments import check_template_arguments

# What `send` takes: a text of the user, or messages such as the results of tools.
NewMessages = str | Message | Sequence[Message]


class ChatModel(Protocol):
    """What a chat needs of a model: see LanguageModel."""

    def chat_tokens(self, messages: Sequence[Message], **template: Any) -> Tokens:
        """Tokens of a conversation."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of its adapters."""

    def identity_with(self, adapter: str | None) -> Identity:
        """What a state of it depends on whose tokens ran with an adapter, or with none."""

    def snapshot(
        self, tokens: Sequence[int], adapter: str | None = None
    ) -> tuple[list[int], CacheRows]:
        """What its sequences hold of tokens."""

    def preload(self, tokens: Sequence[int], state: CacheRows, adapter: str | None = None) -> None:
        """Make a sequence hold tokens."""

    def answer(
        self,
        messages: Sequence[Message],
        template: Mapping[str, Any],
        options: Options,
        *,
        ended: Callable[[Reply], None] | None = None,
    ) -> Stream:
        """A stream that answers messages."""


class Chat:
    """A conversation with a model.

    Args:
        model: a model with a chat template.
        messages: the first messages, for example a system message.
        template: further arguments of the chat template, such as `enable_thinking` and `tools`.
        adapter: name of the adapter for all answers, unless `send` names another; None for none.
    """

    def __init__(
        self,
        model: ChatModel,
        messages: Sequence[Message] = (),
        template: Mapping[str, Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> None:
        if messages:
            check_messages(messages)
        self.model = model
        self.template = check_template_arguments(template or {}, "template")
        self.adapter = adapter
        self._messages = _copies(messages)
        self._beginning = len(self._messages)
        self._unfinished: Stream | None = None

    @property
    def messages(self) -> list[Message]:
        """A copy of the conversation so far."""
        return _copies(self._messages)

    @property
    def tokens(self) -> int:
        """Tokens of the conversation so far, as the chat template writes it."""
        return len(self.model.chat_tokens(self._messages, **self.template)) if self._messages else 0

    def send(self, message: NewMessages, **options: Unpack[Options]) -> Stream:
        """Add a message and stream the answer, which is added to the messages when it ends.

        If an answer is cancelled, closed or ended by the next `send`, the part generated so far is
        added. After an error, the messages are as before.

        Args:
            message: the user's text, a message (such as a tool's result), or a list of messages.
            options: of the answer.

        Raises:
            BadInput: not messages, a conversation that the template rejects, an invalid option.
            ContextFull: the conversation is longer than the context.
            Busy: another thread is reading the last answer.
        """
        self._end_unfinished()
        new = _as_messages(message)
        before = len(self._messages)
        asked = [*self._messages, *new]

        def ended(reply: Reply) -> None:
            self._unfinished = None
            if len(self._messages) == before and _was_answered(reply):
                self._messages = [*asked, reply.message]

        if self.adapter is not None and "adapter" not in options:
            options["adapter"] = self.adapter
        self._unfinished = self.model.answer(asked, self.template, options, ended=ended)
        return self._unfinished

    def asend(self, message: NewMessages, **options: Unpack[Options]) -> AsyncStream:
        """The same as `send`, for asyncio: use `async for`, or `await stream.read()`."""
        return AsyncStream(self.send(message, **options))

    def save(self, path: str | Path) -> SavedSession:
        """Save messages and the model's state, to continue later where the chat is now.

        Only what a sequence of the model still holds of the state is saved; the rest is computed
        again after loading. Returns the number of saved tokens and the size of the file.

        Raises:
            BadInput: messages that are not plain values.
            Busy: another thread is reading the last answer.
            OSError: the file cannot be written.
        """
        self._end_unfinished()
        tokens = (
            list(self.model.chat_tokens(self._messages, **self.template)) if self._messages else []
        )
        held, state = self.model.snapshot(tokens, self.adapter)
        return write_session(
            Path(path),
            self.model.identity_with(self.adapter),
            held,
            state,
            messages=[dict(message) for message in self._messages],
            template=self.template,
            beginning=self._beginning,
            adapter=self.adapter,
        )

    @classmethod
    def load(cls, model: ChatModel, path: str | Path, *, state: bool = True) -> Self:
        """A chat that `save` wrote.

        Args:
            model: the same bundle on the same engine, with the same edgelm.
            path: the file.
            state: False loads only the messages, which any model can continue; the chat's adapter
                is dropped if the model has none of that name.

        Raises:
            BadInput: no such file, a damaged one, or a state of another model or version.
            UnknownName: the model lacks the adapter of the state.
        """
        path = Path(path)
        header = read_header(path)
        adapter = header.adapter
        if state:
            header, arrays = read_session(path, model.identity_with(adapter))
            if header.tokens:
                model.preload(header.tokens, arrays, adapter)
        elif adapter not in model.adapters:
            adapter = None
        messages: list[Any] = header.messages
        chat = cls(model, messages, header.template, adapter=adapter)
        chat._beginning = min(header.beginning, len(messages))
        return chat

    def fork(self) -> "Chat":
        """Another chat that begins with the same messages; the two are then independent."""
        copy = Chat(self.model, self._messages, self.template, adapter=self.adapter)
        copy._beginning = self._beginning
        return copy

    def rewind(self, turns: int = 1) -> None:
        """Forget the last turns: a message of the user and all that followed it.

        Raises:
            BadInput: there are fewer turns.
        """
        self._end_unfinished()
        starts = [n for n, message in enumerate(self._messages) if message["role"] == "user"]
        starts = [n for n in starts if n >= self._beginning]
        if not 1 <= turns <= len(starts):
            raise BadInput(f"cannot rewind {turns} turns: the conversation has {len(starts)}")
        del self._messages[starts[-turns] :]

    def reset(self) -> None:
        """Forget all but what the chat began with."""
        self._end_unfinished()
        del self._messages[self._beginning :]

    def __repr__(self) -> str:
        return f"<Chat of {len(self._messages)} messages with {self.model!r}>"

    def __copy__(self) -> Self:
        raise BadInput("use fork() to copy a chat")

    def _end_unfinished(self) -> None:
        stream = self._unfinished
        if stream is None:
            return
        if stream.is_running:
            raise Busy(
                "the last answer of this chat is being read; wait until it has ended, or cancel it"
            )
        stream.close()


def _as_messages(given: NewMessages) -> list[Message]:
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    messages = [given] if isinstance(given, Mapping) else given
    check_messages(messages)
    return _copies(messages)


def _copies(messages: Sequence[Message]) -> list[Message]:
    """Messages that nobody else can change."""
    return [plain(message) for message in messages]


def _was_answered(reply: Reply) -> bool:
    return bool(reply.chunks)
