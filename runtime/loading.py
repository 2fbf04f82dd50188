"""Loading a bundle: what is checked first, and the memory that it may take."""

import logging
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from edgelm.bundle import DRAFT, MANIFEST, Manifest, read_manifest
from edgelm.bundle.files import TOKENIZER, check_draft
from edgelm.cli import check_bytes, format_bytes, parse_bytes, parse_size
from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes
from edgelm.errors import BadBundle, BadInput, DoesNotFit
from edgelm.runtime.bundle_folder import bundle_folder
from edgelm.runtime.engines.open import check_threads, open_draft, open_session
from edgelm.runtime.engines.unchanged_bundle import open_unchanged
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.process_memory.heap import give_back
from edgelm.runtime.saved.prompt_cache import DEFAULT_BYTES, PromptCache
from edgelm.runtime.saved.session_file import identity_of
from edgelm.runtime.speculation.mode import check_mode
from edgelm.runtime.text.tokenizer import Tokenizer
from edgelm.speculation import SpeculationMode

log = logging.getLogger(__name__)

_MIN_CONTEXT = 256  # a shorter one would hold no conversation
_CONTEXT_STEP = 64
_MAX_SEQUENCES = 256


def load(
    bundle: str | Path,
    *,
    max_memory: int | str | None = None,
    threads: int | None = None,
    sequences: int = 1,
    batching: bool = True,
    prompt_cache: str | Path | None = None,
    prompt_cache_size: int | str = DEFAULT_BYTES,
    speculation: SpeculationMode = "auto",
    check_hashes: bool = True,
    compile_engine: bool = False,
) -> LanguageModel:
    """Load a bundle.

    Args:
        bundle: the folder that `edge-export` wrote.
        max_memory: bytes, or a size such as `"1.5GB"`: the context is reduced until weights,
            cache, workspace and runtime fit, and a warning is logged.
        threads: threads for matrix products; by default the physical cores.
        sequences: number of generations that can run at the same time; each has its own cache, and
            all share one copy of the weights.
        batching: run the next tokens of several generations together where the bundle's graph can.
            With 4-bit and fp32 weights, the last digits of a token's logits may then depend on how
            many sequences run together; False runs each sequence alone.
        prompt_cache: a folder for the states of long system messages, so that the next start of the
            program reads them instead of computing them; None stores nothing.
        prompt_cache_size: bytes, or a size such as `"2GB"`: beyond it the least recently used
            states are removed.
        speculation: how tokens are drafted, several of which are then checked in one run:
            "lookup" (what followed the same tokens earlier in prompt and answer), "draft" (the
            bundle's draft model or draft head), "auto" (whichever is faster, and only while each
            token's logits stay the same bit for bit), or "off".
        check_hashes: compare every file with its hash first. A file that has not changed since it
            was compared is not read again.
        compile_engine: compile the engine of a bundle that has none yet, which takes minutes and
            happens once; otherwise that is an error.

    Raises:
        BadBundle: not a bundle, a damaged one, one that does not match its hashes, or one that was
            replaced while it was loaded.
        BadInput: an invalid `bundle`, `threads`, `sequences` or `max_memory`.
        DoesNotFit: even the smallest context needs more than `max_memory`.
        MissingPackage: no engine is installed.

    The hash of a compiled engine is compared in any case, because it is native code.
    """
    folder = bundle_folder(bundle)
    check_threads(threads)
    check_sequences(sequences)
    manifest = read_manifest(folder)
    if manifest.spec.draft_head or manifest.spec.assistant is not None:
        what = "a draft head" if manifest.spec.draft_head else "an assistant"
        raise BadBundle(
            f"{folder} is {what}, which generates no text by itself; load the bundle that it "
            f"is in: {folder.resolve().parent}"
        )
    if manifest.pending and compile_engine:
        from edgelm.runtime.engines.finalize import finalize

        log.warning("the engine of %s is not compiled yet: compiling it now", folder)
        finalize(folder, force=False, progress=log.warning)

    def cache(manifest: Manifest) -> PromptCache | None:
        if prompt_cache is None:
            return None
        size = _size("prompt_cache_size", prompt_cache_size, parse_size)
        return PromptCache(Path(prompt_cache), identity_of(manifest), max_bytes=size)

    def open_model(manifest: Manifest) -> LanguageModel:
        draft = None if speculation in ("off", "lookup") else read_draft(folder, manifest)
        mode = check_mode(speculation, has_draft=draft is not None)
        capacity = manifest.limits.context
        if max_memory is not None:
            budget = _size("max_memory", max_memory, parse_bytes)
            if mode == "auto":
                draft = _affordable(manifest, draft, budget, sequences)
            capacity = fit_context(manifest, budget, sequences, draft=draft)
        # Reading it takes more memory than it keeps: before the weights are there.
        tokenizer = Tokenizer(folder / TOKENIZER)
        give_back()
        sessions = [open_session(folder, manifest, capacity=capacity, threads=threads)]
        try:
            sessions += [sessions[0].sibling() for _ in range(sequences - 1)]
            if draft is not None:
                limit = min(capacity, draft.limits.context)
                sessions.append(
                    open_draft(folder / DRAFT, draft, sessions[0], capacity=limit, threads=threads)
                )
                sessions += [sessions[-1].sibling() for _ in range(sequences - 1)]
            return LanguageModel(
                folder,
                manifest,
                sessions[:sequences],
                prompt_cache=cache(manifest),
                drafts=sessions[sequences:],
                speculation=mode,
                batching=batching,
                tokenizer=tokenizer,
            )
        except BaseException:
            for session in sessions:
                session.close()
            raise

    model = open_unchanged(folder, open_model, hashes=check_hashes)
    give_back()  # what reading the bundle has left
    return model


def read_draft(folder: Path, manifest: Manifest) -> Manifest | None:
    """The manifest of a bundle's draft model; None if it has none.

    Raises:
        BadBundle: it cannot be read, or has files that the bundle does not list.
    """
    if f"{DRAFT}/{MANIFEST}" not in manifest.files:
        return None
    draft = read_manifest(folder / DRAFT)
    check_draft(folder / DRAFT, manifest, draft)
    return draft


def _affordable(
    manifest: Manifest, draft: Manifest | None, budget: int, sequences: int
) -> Manifest | None:
    """The draft model, unless the context would have to be reduced for it."""
    if draft is None:
        return None
    full = manifest.limits.context
    need = loaded_bytes(manifest, full, sequences=sequences)
    if need + draft_bytes(draft, manifest, full, sequences=sequences) <= budget:
        return draft
    log.warning("the draft model is not loaded: it does not fit in %s", format_bytes(budget))
    return None


def fit_context(
    manifest: Manifest, budget: int, sequences: int = 1, *, draft: Manifest | None = None
) -> int:
    """The longest context, up to the bundle's, with which a loaded bundle fits in `budget` bytes.

    Args:
        manifest: of the bundle.
        budget: bytes.
        sequences: generations that can run at a time.
        draft: of its draft model, if that is loaded, too.

    Raises:
        DoesNotFit: even the shortest needs more, or the context is fixed in the graph.
    """
    full = manifest.limits.context

    def need(context: int) -> int:
        own = loaded_bytes(manifest, context, sequences=sequences)
        return own + (draft_bytes(draft, manifest, context, sequences=sequences) if draft else 0)

    if need(full) <= budget:
        return full
    if manifest.graph.cache.capacity is not None:
        raise DoesNotFit(
            f"this bundle needs about {format_bytes(need(full))}, max_memory is "
            f"{format_bytes(budget)}, and its context of {full} is fixed in its graph; export it "
            "with a shorter --context"
        )
    shortest = min(_MIN_CONTEXT, full)
    needed = need(shortest)
    if needed > budget:
        raise DoesNotFit(
            f"a context of {shortest} needs about {format_bytes(needed)}, "
            f"max_memory is {format_bytes(budget)}; export with fewer bits or give more memory"
        )
    # It grows with the context: the first that does not fit is found by halving.
    steps = range(shortest, full, _CONTEXT_STEP)
    fitting = bisect_right(steps, budget, key=need)
    context = steps[fitting - 1]
    log.warning(
        "context reduced from %d to %d tokens to stay within %s",
        full,
        context,
        format_bytes(budget),
    )
    return context


def check_sequences(count: object) -> None:
    """Raise BadInput unless a model can have this number of sequences."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_SEQUENCES:
        raise BadInput(f"sequences is {count!r}, expected an integer from 1 to {_MAX_SEQUENCES}")


def _size(name: str, size: object, parse: Callable[[str], int]) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        if parse is parse_bytes:
            check_bytes(size, str(size))
        return size
    if not isinstance(size, str):
        raise BadInput(f"{name} is {size!r}, expected bytes above 0 or a size such as '1.5GB'")
    try:
        return parse(size)
    except Exception as error:
        raise BadInput(f"{name}: {error}") from None
