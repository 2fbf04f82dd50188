"""A loaded bundle: prompts and conversations in, text out."""

import logging
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from edgelm.bundle import Manifest, bundle_file, read_manifest
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.cli import format_bytes, parse_size
from edgelm.devices.planner.memory_need import loaded_bytes
from edgelm.errors import BadInput, DoesNotFit
from edgelm.python310 import Self, Unpack
from edgelm.runtime.bundle_folder import bundle_folder
from edgelm.runtime.engines.open import check_threads, open_session
from edgelm.runtime.engines.session import Session, Tokens
from edgelm.runtime.engines.unchanged_bundle import open_unchanged
from edgelm.runtime.generation_config import (
    GENERATION_CONFIG,
    GenerationConfig,
    read_generation_config,
)
from edgelm.runtime.generator import (
    FINISH_REASONS,
    Chunk,
    FinishReason,
    Generation,
    GenerationRequest,
    Generator,
    StopReason,
)
from edgelm.runtime.options import Options, make_request
from edgelm.runtime.text.chat import ChatTemplate, Message, check_messages
from edgelm.runtime.text.control_tokens import ControlTokens
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import read_response_format
from edgelm.runtime.text.special_tokens import read_special_tokens
from edgelm.runtime.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CHAT_TEMPLATE = "chat_template.jinja"

_MIN_CONTEXT = 256  # a shorter one would hold no conversation
_CONTEXT_STEP = 64


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    chunks: tuple[Chunk, ...]
    prompt_tokens: int

    @property
    def tokens(self) -> list[int]:
        """The generated token ids, an end-of-sequence token included."""
        return [chunk.token for chunk in self.chunks if chunk.token is not None]

    @property
    def stop_reason(self) -> StopReason:
        """Why it ended, in detail: see Chunk."""
        reason = self.chunks[-1].stop_reason
        assert reason is not None
        return reason

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended, in OpenAI's words: stop, length or cancelled."""
        return FINISH_REASONS[self.stop_reason]


class LanguageModel:
    """A bundle on its engine. Use it as a context manager, or call `close`.

    It holds one sequence in its cache, so the latest generation has it. `generate` and `chat` may
    be called from several threads: they wait for each other. A stream holds the model for each of
    its steps only: when another generation begins before it is finished, it raises `Busy`. For
    several streams at once load the model several times.
    `close` may be called from any thread; a generation that is running there ends with BadInput.
    """

    def __init__(self, folder: Path, manifest: Manifest, session: Session) -> None:
        self.folder = folder
        self.manifest = manifest
        self.session = session
        # All that is read is read now, while the files are known to be those that were checked.
        try:
            started = time.perf_counter()
            self.tokenizer = Tokenizer(folder / "tokenizer.json")
            self.tokenizer_seconds = time.perf_counter() - started
            config = read_generation_config(bundle_file(folder, manifest, GENERATION_CONFIG))
            self.eos_token_ids = config.eos_token_ids
            self._defaults = config.sampling(session.vocab_size)
            self._generator = Generator(session, self.tokenizer, self.eos_token_ids)
            self._template = _read_template(folder, manifest, config, self.tokenizer)
            self._grammars = GrammarCompiler(
                self.tokenizer.to_json, session.vocab_size, self.eos_token_ids
            )
        except BaseException:
            session.close()  # nothing else has a reference to it yet
            raise

    @property
    def context(self) -> int:
        """Tokens that the cache holds: the prompt and all of the answer but its last token."""
        return self.session.capacity

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[str]:
        """Yield the continuation of a prompt as it grows; never half a character.

        The prompt is not put into the chat template: see `stream_chat`.

        Raises:
            BadInput: an empty prompt, an invalid option, or a closed model.
            ContextFull: a prompt longer than the context.
            Busy: from the iterator: another generation has begun on this model.
            BadBundle: from the iterator: the model's logits are not numbers.
        """
        return _texts(self.stream_tokens(self.tokenizer.encode(prompt), **options))

    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion:
        """Continue a prompt."""
        return self._complete(self.tokenizer.encode(prompt), options)

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        allow_special: bool = True,
        **options: Unpack[Options],
    ) -> Iterator[str]:
        """Yield the assistant's next turn as it grows; see `chat_tokens` for `allow_special`."""
        tokens = self.chat_tokens(messages, allow_special=allow_special)
        return _texts(self.stream_tokens(tokens, **options))

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        allow_special: bool = True,
        **options: Unpack[Options],
    ) -> Completion:
        """Answer a conversation, or a prompt: return the assistant's next turn."""
        return self._complete(self.chat_tokens(messages, allow_special=allow_special), options)

    def stream_tokens(
        self, tokens: Tokens | Sequence[int], **options: Unpack[Options]
    ) -> Generation:
        """Continue token ids [n]; yield a chunk per token, with its log-probability and the like.

        Raises:
            BadInput, ContextFull, Busy, BadBundle: as `stream`.
        """
        return self._generator.stream(self._request(tokens, options))

    def chat_tokens(
        self, messages: str | Sequence[Message], *, allow_special: bool = True
    ) -> Tokens:
        """Tokens of a conversation, up to where the assistant's next turn begins.

        Args:
            messages: the turns so far; a string is one message of the user.
            allow_special: whether control tokens in a message (`<|im_end|>`) are encoded as such,
                as transformers does by default. Say no to messages that others wrote: they are
                then plain text, and cannot begin a turn of another role.

        Raises:
            BadInput: no chat template, a conversation that it refuses, or, where control tokens
                are not allowed, a message that this tokenizer cannot encode as text.
        """
        self._generator.check_open()
        template = self._chat_template()
        if isinstance(messages, str):
            messages = [Message(role="user", content=messages)]
        # The template writes BOS and the like itself.
        if allow_special:
            return self.tokenizer.encode(template.render(messages), special=False)
        check_messages(messages)
        control = ControlTokens(self.tokenizer, template.source)
        return control.encode(template.render(control.mark(messages)))

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise BadInput(
                f"{self.folder} has no chat template: this model was not trained to chat; use "
                "generate or stream with a plain prompt"
            )
        return self._template

    def close(self) -> None:
        """Release the engine and the cache; using the model afterwards raises BadInput."""
        self._generator.close()

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

    def _complete(self, tokens: Tokens, options: Options) -> Completion:
        chunks = self._generator.complete(self._request(tokens, options))
        return Completion("".join(chunk.text for chunk in chunks), chunks, len(tokens))

    def _request(self, tokens: Tokens | Sequence[int], options: Options) -> GenerationRequest:
        constraint = None
        response_format = read_response_format(options.get("response_format"))
        if response_format is not None:
            self._grammars.check(response_format)
            constraint = partial(self._grammars.start, response_format)
        return make_request(tokens, options, self._defaults, constraint=constraint)


def load(
    bundle: str | Path,
    *,
    max_memory: int | str | None = None,
    threads: int | None = None,
    check_hashes: bool = True,
) -> LanguageModel:
    """Load a bundle.

    Args:
        bundle: the folder that `edge-export` wrote.
        max_memory: bytes, or a size such as `"1.5GB"`: the context is reduced until weights,
            cache, workspace and runtime fit, and a warning is logged.
        threads: threads for matrix products; by default the physical cores.
        check_hashes: compare every file with its hash first.

    Raises:
        BadBundle: not a bundle, a damaged one, one that does not match its hashes, or one that was
            replaced while it was loaded.
        BadInput: `bundle`, `threads` or `max_memory` that cannot be used.
        DoesNotFit: even the smallest context needs more than `max_memory`.
        MissingPackage: no engine is installed.

    The engine of a pending bundle is compiled first, which takes minutes and happens once. The
    hash of a compiled engine is always compared, also without `check_hashes`: it is native code.
    """
    folder = bundle_folder(bundle)
    check_threads(threads)
    manifest = read_manifest(folder)
    if manifest.pending:
        from edgelm.runtime.engines.finalize import finalize

        log.warning("the engine of %s is not compiled yet: compiling it now", folder)
        finalize(folder, force=False, progress=log.warning)

    def open_model(manifest: Manifest) -> LanguageModel:
        capacity = manifest.limits.context
        if max_memory is not None:
            capacity = fit_context(manifest, _bytes(max_memory))
        session = open_session(folder, manifest, capacity=capacity, threads=threads)
        try:
            return LanguageModel(folder, manifest, session)
        except BaseException:
            session.close()
            raise

    return open_unchanged(folder, open_model, hashes=check_hashes)


def fit_context(manifest: Manifest, budget: int) -> int:
    """The longest context, up to the bundle's, with which a loaded bundle fits in `budget` bytes.

    Raises:
        DoesNotFit: even the shortest needs more, or the context is fixed in the graph.
    """
    full = manifest.limits.context
    if loaded_bytes(manifest, full) <= budget:
        return full
    if manifest.graph.cache.capacity is not None:
        raise DoesNotFit(
            f"this bundle needs about {format_bytes(loaded_bytes(manifest, full))}, max_memory is "
            f"{format_bytes(budget)}, and its context of {full} is fixed in its graph; export it "
            "with a shorter --context"
        )
    shortest = min(_MIN_CONTEXT, full)
    needed = loaded_bytes(manifest, shortest)
    if needed > budget:
        raise DoesNotFit(
            f"a context of {shortest} needs about {format_bytes(needed)}, "
            f"max_memory is {format_bytes(budget)}; export with fewer bits or give more memory"
        )
    # It grows with the context: the first that does not fit is found by halving.
    steps = range(shortest, full, _CONTEXT_STEP)
    fitting = bisect_right(steps, budget, key=lambda context: loaded_bytes(manifest, context))
    context = steps[fitting - 1]
    log.warning(
        "context reduced from %d to %d tokens to stay within %s",
        full,
        context,
        format_bytes(budget),
    )
    return context


def _bytes(size: object) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if not isinstance(size, str):
        raise BadInput(f"max_memory is {size!r}, expected bytes above 0 or a size such as '1.5GB'")
    try:
        return parse_size(size)
    except Exception as error:
        raise BadInput(f"max_memory: {error}") from None


def _texts(chunks: Generation) -> Iterator[str]:
    try:
        for chunk in chunks:
            if chunk.text:
                yield chunk.text
    finally:
        chunks.close()


def _read_template(
    folder: Path, manifest: Manifest, config: GenerationConfig, tokenizer: Tokenizer
) -> ChatTemplate | None:
    path = bundle_file(folder, manifest, CHAT_TEMPLATE)
    if path is None:
        return None
    names = read_special_tokens(bundle_file(folder, manifest, SPECIAL_TOKENS_FILE))
    if names is None:  # a bundle without the file
        names = {
            name: tokenizer.token(token) or "" for name, token in config.special_tokens().items()
        }
    return ChatTemplate(path, special_tokens=names)
