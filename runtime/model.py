"""A loaded bundle: prompts and conversations in, text out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from edgelm.bundle import Manifest, bundle_file
from edgelm.bundle.files import TOKENIZER
from edgelm.errors import BadInput
from edgelm.python310 import Self, Unpack
from edgelm.runtime.conversation import Chat
from edgelm.runtime.embedding.embedding_methods import EmbeddingMethods, embedder_of
from edgelm.runtime.engines.adapters import Adapters, LoadedAdapter
from edgelm.runtime.engines.session import CacheRows, Session, Tokens
from edgelm.runtime.generation.async_stream import AsyncStream
from edgelm.runtime.generation.generation_config import (
    GENERATION_CONFIG,
    read_generation_config,
)
from edgelm.runtime.generation.options import Options, make_request
from edgelm.runtime.generation.reply import Reply
from edgelm.runtime.generation.request import GenerationRequest
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.occupancy import Occupancy
from edgelm.runtime.saved.prompt_cache import PromptCache
from edgelm.runtime.saved.session_file import Identity, identity_of, with_adapter
from edgelm.runtime.sequences import Sequences, common_prefix
from edgelm.runtime.speculation.mode import check_mode
from edgelm.runtime.text.answers.answering import Answering
from edgelm.runtime.text.answers.tool_choice import ToolChoice, read_tool_choice
from edgelm.runtime.text.bundle_template import read_template
from edgelm.runtime.text.chat import ChatTemplate
from edgelm.runtime.text.control_tokens import ControlTokens
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import read_response_format
from edgelm.runtime.text.messages import Message, are_messages, normalized
from edgelm.runtime.text.template_arguments import check_template_arguments
from edgelm.runtime.text.tokenizer import Tokenizer
from edgelm.speculation import SpeculationMode

_PROMPT_END = 32  # tokens, in which a template that begins the reasoning has its tag
_OF_MESSAGES: tuple[
    Literal[
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_budget",
        "chat_template_kwargs",
    ],
    ...,
] = ("tools", "tool_choice", "parallel_tool_calls", "reasoning_budget", "chat_template_kwargs")

# A text is continued as it is, token ids too; messages are put into the chat template and answered.
Prompt = str | Sequence[Message] | Sequence[int] | Tokens


class LanguageModel(EmbeddingMethods, Occupancy):
    """A bundle on its engine. Use it as a context manager, or call `close`.

    All methods may be called from several threads. A model has one or more sequences (see `load`):
    each runs one generation at a time; further ones wait in order. A stream that is not read gives
    its sequence to a waiting request, and gets one again when it is read. `close` may be called
    from any thread; running generations then end with BadInput.

    Args:
        folder: the bundle.
        manifest: its manifest.
        sessions: a session, or several over the same weights; they are closed with the model.
        prompt_cache: stores the states of long prompt beginnings; None: they are not stored.
        drafts: sessions of a draft model, one for each; they are closed with the model, too.
        speculation: the default of generations; see `load`.
        batching: whether tokens of several generations run together; see `load`.
        tokenizer: the bundle's, where it was read before.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        sessions: Session | Sequence[Session],
        *,
        prompt_cache: PromptCache | None = None,
        drafts: Sequence[Session] = (),
        speculation: SpeculationMode = "auto",
        batching: bool = True,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        listed = list(sessions) if isinstance(sessions, Sequence) else [sessions]
        self._sequences = Sequences(listed, prompt_cache, drafts, batching=batching)
        self.speculation = speculation
        # All that is read is read now, while the files are known to be those that were checked.
        try:
            self.tokenizer = tokenizer or Tokenizer(folder / TOKENIZER)
            config = read_generation_config(bundle_file(folder, manifest, GENERATION_CONFIG))
            self.eos_token_ids = config.eos_token_ids
            self._adapters = Adapters(folder, manifest)
            self._embedder = embedder_of(self._sequences, self.tokenizer, manifest)
            self._defaults = config.sampling(listed[0].vocab_size)
            self._template = read_template(folder, manifest, config, self.tokenizer)
            self._grammars = GrammarCompiler(
                self.tokenizer.to_json, listed[0].vocab_size, self.eos_token_ids
            )
            self._answering = None if self._template is None else self._read_answering()
        except BaseException:
            self._sequences.close()  # nothing else has a reference to it yet
            raise

    @property
    def context(self) -> int:
        """Tokens that a sequence holds: the prompt and all of the answer but its last token."""
        return self._sequences.capacity

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the bundle's adapters: see the option `adapter`."""
        return tuple(self._adapters)

    def adapter(self, name: str | None) -> LoadedAdapter | None:
        """An adapter in memory, for a session's `use_adapter`; None for none."""
        return self._adapters.find(name)

    @property
    def has_chat_template(self) -> bool:
        """Whether it answers messages; one without continues plain prompts."""
        return self._template is not None

    @property
    def step_ratios(self) -> dict[int, float]:
        """Time of a run of n tokens relative to a run of one, by n, as far as it was measured."""
        return self._sequences.speculation.costs.measured()

    @property
    def sampling_words(self) -> str:
        """A description of the default sampling."""
        if self._defaults.temperature == 0:
            return "greedy decoding"
        return f"temperature {self._defaults.temperature:g} as its authors recommend"

    @property
    def session(self) -> Session:
        """The first sequence's session: tokens in, logits out. For use while nothing else runs."""
        return self._sequences.slots[0].session

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Continue a text or tokens, or answer messages; return the whole answer.

        A text is continued without the chat template; see `chat`.

        Raises:
            BadInput: an empty prompt, an invalid option, an unknown adapter, or a closed model.
            ContextFull: a prompt longer than the context.
            Busy: a call from within this model's own `cancel` or logits processor.
            BadBundle: the model's logits are not numbers.
        """
        with self.stream(prompt, **options) as stream:
            return stream.read()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """`generate` as a stream: one chunk per token, which never ends within a character.

        Raises:
            BadInput, ContextFull, Busy, BadBundle: as `generate`; errors of the engine are raised
                while the stream is read.
        """
        if isinstance(prompt, str):
            return self._open(self.tokenizer.encode(prompt), options)
        if not isinstance(prompt, np.ndarray) and are_messages(prompt):
            return self.answer(prompt, {}, options)  # type: ignore[arg-type]
        return self._open(prompt, options)  # type: ignore[arg-type]

    async def agenerate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """`generate` for asyncio; cancelling the task cancels the generation."""
        async with self.astream(prompt, **options) as stream:
            return await stream.read()

    def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """`stream` for asyncio."""
        return AsyncStream(self.stream(prompt, **options))

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        session: str | Path | None = None,
        adapter: str | None = None,
        **template: Any,
    ) -> Chat:
        """Begin a conversation, or continue a saved one.

        Args:
            system: the system message.
            messages: the first messages, instead of `system`.
            session: a file that `Chat.save` wrote, instead of all other arguments.
            adapter: the name of the bundle's adapter to use; None for none.
            template: further arguments of the chat template, such as `enable_thinking=False`.

        Raises:
            BadInput: no chat template, more than one of `system`, `messages` and `session`, or a
                session that does not fit this model: see Chat.load.
        """
        self._chat_template()
        if session is not None:
            if system is not None or messages or template or adapter is not None:
                raise BadInput("a session has its own messages, adapter and arguments; omit these")
            return Chat.load(self, session)
        self._adapters.find(adapter)
        if system is not None:
            if messages:
                raise BadInput("give either `system` or `messages`")
            messages = [Message(role="system", content=system)]
        return Chat(self, messages, template, adapter=adapter)

    @cached_property
    def identity(self) -> Identity:
        """What a saved state of this model depends on."""
        return identity_of(self.manifest)

    def identity_with(self, adapter: str | None) -> Identity:
        """The same for tokens that ran with an adapter, or with none."""
        return with_adapter(self.identity, self._adapters.find(adapter))

    def snapshot(
        self, tokens: Sequence[int], adapter: str | None = None
    ) -> tuple[list[int], CacheRows]:
        """The longest beginning of the tokens that a sequence holds, and a copy of its state."""
        return self._sequences.snapshot(tokens, self._adapters.find(adapter))

    def preload(self, tokens: Sequence[int], state: CacheRows, adapter: str | None = None) -> None:
        """Load the state of tokens that `snapshot` returned, now or in an earlier process."""
        self._sequences.preload(tokens, state, self._adapters.find(adapter))

    def answer(
        self,
        messages: Sequence[Message],
        template: Mapping[str, Any],
        options: Options,
        *,
        ended: Callable[[Reply], None] | None = None,
    ) -> Stream:
        """A stream that answers messages.

        Args:
            messages: the conversation.
            template: further arguments of the chat template.
            options: of the generation.
            ended: called with the reply when the stream ends.
        """
        tools = read_tool_choice(
            template.get("tools") if options.get("tools") is None else options["tools"],
            options.get("tool_choice"),
            options.get("parallel_tool_calls"),
        )
        template = {
            **template,
            **check_template_arguments(options.get("chat_template_kwargs") or {}),
            "tools": list(tools.tools) or None,
        }
        tokens = self.chat_tokens(messages, **template)
        beginning = 0
        if self._sequences.prompt_cache is not None:
            beginning = self._beginning(messages, template, tokens)
        return self._open(tokens, options, tools=tools, beginning=beginning, ended=ended)

    def chat_tokens(
        self,
        messages: str | Sequence[Message],
        *,
        allow_special: bool = False,
        **template: Any,
    ) -> Tokens:
        """Tokens of a conversation, up to where the assistant's next turn begins.

        Args:
            messages: the turns so far; a string is one message of the user.
            allow_special: whether control tokens in a message (`<|im_end|>`) are encoded as such,
                as transformers does by default. Use it only for messages that you wrote; by default
                control tokens are plain text and cannot begin a turn of another role.
            template: further arguments of the chat template.

        Raises:
            BadInput: no chat template, a conversation that it rejects, or, if control tokens are
                not allowed, a message that this tokenizer cannot encode as plain text.
        """
        self._sequences.check_open()
        source = self._chat_template()
        if isinstance(messages, str):
            messages = [Message(role="user", content=messages)]
        # The template writes BOS and the like itself.
        if allow_special:
            return self.tokenizer.encode(source.render(messages, **template), special=False)
        control = ControlTokens(self.tokenizer, source.source)
        marked = control.mark(normalized(messages))
        return control.encode(source.render(marked, **control.mark_values(template)))

    def close(self) -> None:
        """Release the engine and the cache; using the model afterwards raises BadInput."""
        self._sequences.close()

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"<LanguageModel {str(self.folder)!r} for {manifest.target} on {manifest.engine.name}, "
            f"context {self.context}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(
        self,
        tokens: Tokens | Sequence[int],
        options: Options,
        *,
        tools: ToolChoice | None = None,
        beginning: int = 0,
        ended: Callable[[Reply], None] | None = None,
    ) -> Stream:
        request = replace(
            self._request(tokens, options, tools),
            beginning=beginning,
            speculation=self._speculation(options),
            adapter=self._adapters.find(options.get("adapter")),
        )
        self._sequences.check_open()
        self.check_generates()
        request.check(capacity=self.context, vocab_size=self._sequences.vocab_size)
        return Stream(self._sequences, self, request, ended=ended)

    def _speculation(self, options: Options) -> SpeculationMode:
        given = options.get("speculation")
        if given is None:
            return self.speculation
        return check_mode(given, has_draft=self._sequences.slots[0].draft is not None)

    def _beginning(
        self, messages: Sequence[Message], template: Mapping[str, Any], tokens: Tokens
    ) -> int:
        """How many tokens conversations with the same system message and tools begin with."""
        system = [one for one in messages[:1] if one.get("role") in ("system", "developer")]
        first = str(messages[len(system)].get("content")) if len(messages) > len(system) else ""
        other = "b" if first.startswith("a") else "a"
        try:
            asked = self.chat_tokens([*system, Message(role="user", content=other)], **template)
        except BadInput:  # a template with its own ideas of a conversation
            return 0
        return min(common_prefix(asked.tolist(), tokens.tolist()), len(tokens) - 1)

    def _request(
        self, tokens: Tokens | Sequence[int], options: Options, tools: ToolChoice | None
    ) -> GenerationRequest:
        """The request of a text (`tools` is None), or of an answer to messages."""
        response_format = read_response_format(options.get("response_format"))
        if tools is not None and self._answering is not None:
            answering = self._answering
            prompt = self.tokenizer.decode([int(t) for t in tokens[-_PROMPT_END:]], special=True)
            budget = options.get("reasoning_budget")
            constraint = answering.constraint(tools, response_format, budget, prompt)
            request = make_request(tokens, options, self._defaults, constraint=constraint)
            parser = answering.parser(tools, prompt)
            return replace(request, parser=parser, shown=answering.shown if parser else None)
        for name in _OF_MESSAGES:
            if options.get(name) is not None:
                raise BadInput(f"{name} is for answers to messages; give a list of messages")
        constraint = None
        if response_format is not None:
            self._grammars.check(response_format)
            constraint = partial(self._grammars.start, response_format)
        return make_request(tokens, options, self._defaults, constraint=constraint)

    def _read_answering(self) -> Answering:
        return Answering(
            self._chat_template().source, self.tokenizer, self._grammars, self.eos_token_ids
        )

    def _chat_template(self) -> ChatTemplate:
        self.check_generates()
        if self._template is None:
            raise BadInput(
                f"{self.folder} has no chat template: this model was not trained to chat; use "
                "generate or stream with a plain prompt"
            )
        return self._template
