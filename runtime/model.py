"""A loaded bundle: prompts and conversations in, text out."""

import json
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from edgelm.bundle import Manifest, read_manifest
from edgelm.command import format_bytes, parse_size
from edgelm.devices.memory_need import loaded_bytes
from edgelm.errors import BadBundle, BadInput, DoesNotFit
from edgelm.runtime.chat import ChatTemplate, Message
from edgelm.runtime.engine import check_threads, open_session
from edgelm.runtime.generator import FinishReason, Generator, Piece, Request
from edgelm.runtime.opening import open_unchanged
from edgelm.runtime.sampler import Sampling
from edgelm.runtime.session import Session, Tokens
from edgelm.runtime.special_tokens import read_special_tokens
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.special_token_names import SPECIAL_TOKENS_FILE

log = logging.getLogger(__name__)

_LEAST_CONTEXT = 256  # a shrunken context below this would serve nobody
_CONTEXT_STEP = 64


class Options(TypedDict, total=False):
    """What can be asked of a generation, by keyword; see Sampling and generator.Request."""

    max_new_tokens: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    log_probabilities: int | None
    cancel: Callable[[], bool]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    pieces: tuple[Piece, ...]
    prompt_tokens: int
    finish_reason: FinishReason

    @property
    def tokens(self) -> list[int]:
        """The generated token ids, an end-of-sequence token included."""
        return [piece.token for piece in self.pieces if piece.token is not None]


class LanguageModel:
    """A bundle on its engine. One at a time: it holds one sequence in its cache.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, folder: Path, manifest: Manifest, session: Session) -> None:
        self.folder = folder
        self.manifest = manifest
        self.session = session
        started = time.perf_counter()
        self.tokenizer = Tokenizer(folder / "tokenizer.json")
        self.tokenizer_seconds = time.perf_counter() - started
        self._config = _generation_config(folder)
        self._defaults = _default_sampling(self._config)
        ends = self._config.get("eos_token_id")
        self.ends = frozenset(
            ends if isinstance(ends, list) else [ends] if ends is not None else []
        )
        self._generator = Generator(session, self.tokenizer, self.ends)
        self._template: ChatTemplate | None = None

    @property
    def context(self) -> int:
        """Tokens that the cache holds: the prompt and all of the answer but its last token."""
        return self.session.capacity

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[str]:
        """Yield the continuation of a prompt as it grows; never half a character.

        Raises:
            BadInput: an empty prompt or an invalid option.
            ContextFull: a prompt longer than the context.
        """
        return _texts(self.pieces(self.tokenizer.encode(prompt), **options))

    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion:
        """Continue a prompt."""
        return self._complete(self.tokenizer.encode(prompt), options)

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Iterator[str]:
        """Yield the assistant's next turn as it grows."""
        return _texts(self.pieces(self.chat_tokens(messages), **options))

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Completion:
        """Answer a conversation: the assistant's next turn."""
        return self._complete(self.chat_tokens(messages), options)

    def pieces(self, tokens: Tokens, **options: Unpack[Options]) -> Iterator[Piece]:
        """Yield everything about each step; tokens are int64 [n]."""
        request = self._request(tokens, options)
        self._generator.check(request)  # now, not when the iterator is first asked
        return self._generator.stream(request)

    def chat_tokens(self, messages: Sequence[Message]) -> Tokens:
        """Tokens of a conversation, up to where the assistant's next turn begins."""
        if self._template is None:
            self._template = ChatTemplate(
                self.folder / "chat_template.jinja", special_tokens=self._special_tokens()
            )
        # The template writes BOS and the like itself.
        return self.tokenizer.encode(self._template.render(messages), special=False)

    def close(self) -> None:
        """Release the engine and the cache."""
        self.session.close()

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
        pieces = tuple(self.pieces(tokens, **options))
        reason = pieces[-1].finish_reason
        assert reason is not None
        return Completion("".join(piece.text for piece in pieces), pieces, len(tokens), reason)

    def _request(self, tokens: Tokens, options: Options) -> Request:
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            raise BadInput(
                f"unknown option {min(unknown)!r}; known: {', '.join(Options.__annotations__)}"
            )
        names = {field.name for field in fields(Sampling)}
        sampling: dict[str, Any] = {key: v for key, v in options.items() if key in names}
        stop = options.get("stop", ())
        return Request(
            tokens=tokens,
            max_new_tokens=options.get("max_new_tokens"),
            sampling=replace(self._defaults, **sampling),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_tokens=frozenset(options.get("stop_tokens", ())),
            log_probabilities=options.get("log_probabilities"),
            cancel=options.get("cancel", lambda: False),
        )

    def _special_tokens(self) -> dict[str, str]:
        listed = SPECIAL_TOKENS_FILE in self.manifest.files
        stored = read_special_tokens(self.folder / SPECIAL_TOKENS_FILE if listed else None)
        if stored is not None:
            return stored
        names = {}  # a bundle without the file: its configuration's ids
        for name in ("bos_token", "eos_token", "pad_token"):
            value = self._config.get(f"{name}_id")
            first = value[0] if isinstance(value, list) and value else value
            token = self.tokenizer.token(first) if isinstance(first, int) else None
            names[name] = token or ""
        return names


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
        max_memory: bytes, or a size such as `"1.5GB"`: the context shrinks until weights, cache,
            workspace and runtime fit, and a warning says so.
        threads: threads for matrix products; by default the physical cores.
        check_hashes: compare every file with its hash first.

    Raises:
        BadBundle: not a bundle, a damaged one, one that does not match its hashes, or one that was
            replaced while it was loaded.
        BadInput: `threads` or `max_memory` that cannot be used.
        DoesNotFit: even the smallest context needs more than `max_memory`.
        MissingPackage: no engine is installed.

    The engine of a pending bundle is compiled first, which takes minutes and happens once. The
    hash of a compiled engine is compared whatever `check_hashes` says: it is native code.
    """
    folder = Path(bundle)
    check_threads(threads)
    manifest = read_manifest(folder)
    if manifest.pending:
        from edgelm.runtime.finalize import finalize

        log.warning("the engine of %s is not compiled yet: compiling it now", folder)
        finalize(folder, anew=False, progress=log.warning)

    def open_model(manifest: Manifest) -> LanguageModel:
        capacity = manifest.limits.context
        if max_memory is not None:
            capacity = _shrunken(manifest, _bytes(max_memory))
        session = open_session(folder, manifest, capacity=capacity, threads=threads)
        try:
            return LanguageModel(folder, manifest, session)
        except BaseException:
            session.close()
            raise

    return open_unchanged(folder, open_model, hashes=check_hashes)


def _shrunken(manifest: Manifest, budget: int) -> int:
    whole = manifest.limits.context
    if loaded_bytes(manifest, whole) <= budget:
        return whole
    if manifest.graph.cache.capacity is not None:
        raise DoesNotFit(
            f"this bundle needs about {format_bytes(loaded_bytes(manifest, whole))}, max_memory is "
            f"{format_bytes(budget)}, and its context of {whole} is fixed in its graph; export it "
            "with a shorter --context"
        )
    least = min(_LEAST_CONTEXT, whole)
    if loaded_bytes(manifest, least) > budget:
        raise DoesNotFit(
            f"a context of {least} needs about {format_bytes(loaded_bytes(manifest, least))}, "
            f"max_memory is {format_bytes(budget)}; export with fewer bits or give more memory"
        )
    # It grows with the context: the first that does not fit is found by halving.
    steps = range(least, whole, _CONTEXT_STEP)
    fitting = bisect_right(steps, budget, key=lambda context: loaded_bytes(manifest, context))
    context = steps[fitting - 1]
    log.warning(
        "context reduced from %d to %d tokens to stay within %s",
        whole,
        context,
        format_bytes(budget),
    )
    return context


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    try:
        return parse_size(size)
    except Exception as error:
        raise BadInput(f"max_memory: {error}") from None


def _texts(pieces: Iterator[Piece]) -> Iterator[str]:
    return (piece.text for piece in pieces if piece.text)


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BadBundle(f"{path} is not valid JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _default_sampling(config: dict[str, Any]) -> Sampling:
    """What the model's authors recommend, if they recommend sampling; else greedy."""
    if not config.get("do_sample"):
        return Sampling()
    known = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    given = {key: config[key] for key in known if config.get(key) is not None}
    return Sampling(**{"temperature": 1.0, **given})
