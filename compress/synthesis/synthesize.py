"""Text from the teacher itself, for when there is no data to distil on.

Free text starts from the beginning of sequence or from given words (Liu et al. 2023, LLM-QAT,
section 2.1: text drawn from the teacher serves distillation as well as real text does, as long as
it is drawn and not the likeliest). Answers are written to the questions of a file through the
tokenizer's chat template (sequence-level distillation, Kim and Rush 2016).

What is empty, broken off, looping or seen before is dropped and counted. The result is JSONL with
`text`, `source` and, of answers, `messages`. An interrupted run goes on where it was and ends in
the same file, bit for bit on the same machine.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edgelm.compress.model import Model, Tokenizer
from edgelm.compress.run.fingerprint import tokenizer_sha256, weights_sha256
from edgelm.compress.synthesis.log import Manifest, SynthesisLog
from edgelm.compress.synthesis.near_duplicates import NearDuplicateIndex
from edgelm.compress.synthesis.plan import Answers, FreeText, Plan, Start, make_plan
from edgelm.compress.synthesis.sampling import Sampled, Sampling, sample, stop_ids
from edgelm.compress.synthesis.text_filters import (
    ANSWERS,
    EMPTY,
    FREE_TEXT,
    REPETITIVE,
    TOO_SHORT,
    UNFINISHED,
    UNPRINTABLE,
    Filters,
    fault,
    units,
)
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
TOO_LONG = "prompt too long"
_MAX_REJECTED = 256  # texts without one that is kept, after which no more are tried
_STOCK_PHRASE = 8  # words; a shorter answer may rightly be given to several questions
_ADVICE = {
    EMPTY: "give starts or prompts that the model continues",
    UNFINISHED: "raise max_new_tokens",
    TOO_SHORT: "lower min_characters",
    UNPRINTABLE: "lower the temperature or top_p",
    REPETITIVE: "raise the temperature or top_p",
    DUPLICATE: "raise the temperature or give more starts",
    NEAR_DUPLICATE: "raise the temperature or give more starts",
    TOO_LONG: "lower max_new_tokens or shorten the prompts",
}


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What to write.

    kind: free text or answers.
    teacher: what the teacher is called in the field `source`.
    filters: what is kept; by default what suits the kind.
    alike: estimated share of shingles in common from which a text is a near duplicate.
    """

    kind: FreeText | Answers
    teacher: str
    sampling: Sampling = field(default_factory=Sampling)
    filters: Filters | None = None
    alike: float = 0.8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, after each batch.

    documents, wanted: texts kept and the most that will be.
    tokens: tokens sampled in all; tokens_s: a second, of this run.
    dropped: texts dropped in all, by reason.
    eta_s: seconds to the end at this rate, or None as long as nothing is kept.
    """

    documents: int
    wanted: int
    tokens: int
    tokens_s: float
    dropped: dict[str, int]
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Synthesized:
    """The file written, how many texts it holds and how many were dropped for which reason."""

    path: Path
    documents: int
    tokens: int
    dropped: dict[str, int]


def synthesize(
    model: Model,
    tokenizer: Tokenizer,
    request: Synthesis,
    out: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Synthesized:
    """Let a teacher write texts into a JSONL file, from where an earlier call left off.

    Args:
        model: the teacher.
        tokenizer: the teacher's own; for answers with a chat template.
        request: what to write.
        out: the file; its manifest lies beside it.
        progress: called after each batch.

    Raises:
        BadInput: settings that make no sense, or other ones than the file was begun with; prompts
            that cannot be read; not one text was kept.
    """
    request = _checked(request)
    plan = make_plan(request.kind, request.sampling, model, tokenizer)
    log = SynthesisLog(out, _settings(request, model, tokenizer))
    training = model.training
    model.eval()
    try:
        _write_batches(model, tokenizer, request, plan, log, progress)
    finally:
        model.train(training)
    done = log.manifest
    if not done.documents:
        log.discard()
        raise BadInput(_nothing_kept(done))
    return Synthesized(log.path, done.documents, done.tokens, done.dropped)


def _write_batches(
    model: Model,
    tokenizer: Tokenizer,
    request: Synthesis,
    plan: Plan,
    log: SynthesisLog,
    progress: Callable[[Progress], None] | None,
) -> None:
    seen = NearDuplicateIndex(request.alike)
    for row in log.rows():
        seen.add(_compared(row))
    stop, began, first = stop_ids(model, tokenizer), time.monotonic(), log.manifest
    while not log.manifest.finished:
        done = log.manifest
        starts = plan.batch(done.batches)
        generator = _generator(request.sampling.seed, done.batches, model.device)
        texts = sample(
            model,
            [start.ids for start in starts],
            request.sampling,
            generator,
            stop=stop,
            vocab_size=len(tokenizer),
        )
        rows, dropped = _kept(tokenizer, request, starts, texts, seen)
        rows = rows[: plan.wanted - done.documents]
        log.append(rows, _counted(done, plan, rows, texts, dropped))
        if progress:
            progress(_progress(first, log.manifest, plan, time.monotonic() - began))


def _counted(
    done: Manifest,
    plan: Plan,
    rows: list[dict[str, Any]],
    texts: list[Sampled],
    dropped: dict[str, int],
) -> Manifest:
    if not done.batches and plan.too_long:
        dropped = dropped | {TOO_LONG: plan.too_long}
    counts = dict(Counter(done.dropped) + Counter(dropped))
    documents, batches = done.documents + len(rows), done.batches + 1
    hopeless = not documents and sum(counts.values()) - plan.too_long >= _MAX_REJECTED
    return Manifest(
        done.settings,
        batches=batches,
        documents=documents,
        tokens=done.tokens + sum(len(text.ids) + text.ended for text in texts),
        dropped=counts,
        finished=hopeless or documents == plan.wanted or batches == plan.batches,
    )


def _kept(
    tokenizer: Tokenizer,
    request: Synthesis,
    starts: list[Start],
    texts: list[Sampled],
    seen: NearDuplicateIndex,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    assert request.filters is not None
    for start, text in zip(starts, texts, strict=True):
        row = _row(tokenizer, f"synthetic:{request.teacher}", start, text)
        written, compared = _written(row), _compared(row)
        reason = fault(written, request.filters, ended=text.ended)
        if reason is None and seen.has_exactly(compared):
            reason = DUPLICATE
        if reason is None and seen.has_nearly(compared):
            reason = NEAR_DUPLICATE
        if reason:
            dropped[reason] += 1
        else:
            seen.add(compared)
            rows.append(row)
    return rows, dict(dropped)


def _row(tokenizer: Tokenizer, source: str, start: Start, text: Sampled) -> dict[str, Any]:
    # Decoded together with a start in words, so that the space between them is right.
    ids = text.ids if start.messages else start.ids + text.ids
    written = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if not text.ended:
        written = written.rstrip("\ufffd")  # a character that the limit cut in the middle
    if not start.messages:
        return {"text": written, "source": source}
    messages = [*start.messages, {"role": "assistant", "content": written}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    return {"text": rendered, "source": source, "messages": messages}


def _written(row: dict[str, Any]) -> str:
    """What the filters judge: of a conversation the answer."""
    return str(row["messages"][-1]["content"] if "messages" in row else row["text"])


def _compared(row: dict[str, Any]) -> str:
    """What is told from what was seen: of a short answer the question with it."""
    written = _written(row)
    if "messages" not in row or len(units(written)) >= _STOCK_PHRASE:
        return written
    question = " ".join(message["content"] for message in row["messages"][:-1])
    return f"{question}\n{written}"


def _checked(request: Synthesis) -> Synthesis:
    request.sampling.check()
    if request.filters:
        request.filters.check()
    if not 0 < request.alike <= 1:
        raise BadInput(f"alike is {request.alike}, expected above 0 and up to 1")
    return replace(request, filters=request.filters or _FILTERS[type(request.kind)])


def _settings(request: Synthesis, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    kind = asdict(request.kind)
    if isinstance(request.kind, Answers):
        kind = kind | {"prompts": file_sha256(request.kind.prompts)}
    elif isinstance(request.kind, FreeText):
        starts = json.dumps(request.kind.starts).encode()
        kind = kind | {"starts": hashlib.sha256(starts).hexdigest()}
    assert request.filters is not None
    return {
        "kind": type(request.kind).__name__,
        "teacher": request.teacher,
        "weights": weights_sha256(model),
        "tokenizer": tokenizer_sha256(tokenizer),
        "alike": request.alike,
        **kind,
        **asdict(request.sampling),
        **asdict(request.filters),
    }


def _generator(seed: int, batch: int, device: torch.device) -> torch.Generator:
    mixed = hashlib.sha256(f"{seed} {batch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed[:7], "big"))


def _progress(first: Manifest, now: Manifest, plan: Plan, seconds: float) -> Progress:
    tokens_s = (now.tokens - first.tokens) / seconds
    batch_s = seconds / (now.batches - first.batches)
    eta_s: float | None = (plan.batches - now.batches) * batch_s
    if now.documents < plan.wanted and (kept := now.documents - first.documents):
        eta_s = min(eta_s or 0.0, (plan.wanted - now.documents) * seconds / kept)
    elif not now.documents:
        eta_s = None
    if now.finished:
        eta_s = 0.0
    return Progress(now.documents, plan.wanted, now.tokens, tokens_s, dict(now.dropped), eta_s)


def _nothing_kept(done: Manifest) -> str:
    reasons = sorted(done.dropped.items(), key=lambda item: -item[1])
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    total = sum(done.dropped.values())
    return f"none of {total} texts was kept ({counts}); {_ADVICE[reasons[0][0]]}"


_FILTERS: dict[type, Filters] = {FreeText: FREE_TEXT, Answers: ANSWERS}
