"""Synthetic text from the teacher, for distillation without data.

Free text starts from the beginning of sequence or from given words (Liu et al. 2023, LLM-QAT,
section 2.1: text sampled from the teacher, though not its greedy text, serves distillation as well
as real text). Answers are generated for the questions of a file through the tokenizer's chat
template (sequence-level distillation, Kim and Rush 2016).

Empty, truncated, repetitive and duplicate texts are rejected and counted. The result is JSONL with
`text`, `source` and, for answers, `messages`. An interrupted run resumes to the same file, bit for
bit on the same machine.
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

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.model import Model, Tokenizer
from edgelm.compress.run.fingerprint import tokenizer_sha256, weights_sha256
from edgelm.compress.synthesis.log import Manifest, SynthesisLog
from edgelm.compress.synthesis.near_duplicates import NearDuplicateIndex
from edgelm.compress.synthesis.plan import Answers, FreeText, Plan, Prompt, make_plan
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
    rejection_reason,
    words,
)
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
TOO_LONG = "prompt too long"
_MAX_REJECTED = 256  # texts in a row without an accepted one, after which the run ends
_STOCK_PHRASE = 8  # words; a shorter answer may be right for several questions
_ADVICE = {
    EMPTY: "give prompts, or from Python starts, that the model continues",
    UNFINISHED: "raise max_new_tokens",
    TOO_SHORT: "raise max_new_tokens, or lower the filter's min_characters",
    UNPRINTABLE: "lower the temperature or top_p",
    REPETITIVE: "raise the temperature or top_p",
    DUPLICATE: "raise the temperature or give more prompts",
    NEAR_DUPLICATE: "raise the temperature or give more prompts",
    TOO_LONG: "lower max_new_tokens or shorten the prompts",
}


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What to generate.

    kind: free text or answers.
    teacher: its name in the field `source`.
    filters: by default those of the kind.
    jaccard_threshold: estimated Jaccard index of shingles from which a text is a near duplicate.
    """

    kind: FreeText | Answers
    teacher: str
    sampling: Sampling = field(default_factory=Sampling)
    filters: Filters | None = None
    jaccard_threshold: float = 0.8


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress after each batch.

    documents, target: texts accepted so far, and requested.
    tokens: tokens sampled in total; tokens_s: per second, in this run.
    dropped: texts rejected in total, by reason.
    eta_s: seconds to the end at this rate; None until a text is accepted.
    """

    documents: int
    target: int
    tokens: int
    tokens_s: float
    dropped: dict[str, int]
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Synthesized:
    """The file, its number of texts, the tokens sampled, and rejected texts by reason."""

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
    """Let a teacher write texts into a JSONL file; an interrupted call resumes.

    Args:
        model: the teacher.
        tokenizer: the teacher's; answers need its chat template.
        request: what to generate.
        out: the file; its manifest is next to it.
        progress: called after each batch.

    Raises:
        BadInput: settings out of range, or other ones than the file was started with; prompts
            that cannot be read; no text was accepted.
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
        raise BadInput(_nothing_accepted(done))
    return Synthesized(log.path, done.documents, done.tokens, done.dropped)


def _write_batches(
    model: Model,
    tokenizer: Tokenizer,
    request: Synthesis,
    plan: Plan,
    log: SynthesisLog,
    progress: Callable[[Progress], None] | None,
) -> None:
    seen = NearDuplicateIndex(request.jaccard_threshold)
    for row in log.rows():
        seen.add(_compared(row))
    stop, began, first = stop_ids(model, tokenizer), time.monotonic(), log.manifest
    while not log.manifest.finished:
        done = log.manifest
        prompts = plan.batch(done.batches)
        generator = _generator(request.sampling.seed, done.batches, model.device)
        texts = sample(
            model,
            [prompt.ids for prompt in prompts],
            request.sampling,
            generator,
            stop=stop,
            vocab_size=len(tokenizer),
        )
        rows, dropped = _filtered(tokenizer, request, prompts, texts, seen)
        rows = rows[: plan.target - done.documents]
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
    rejected_all = not documents and sum(counts.values()) - plan.too_long >= _MAX_REJECTED
    return Manifest(
        done.settings,
        batches=batches,
        documents=documents,
        tokens=done.tokens + sum(len(text.ids) + text.ended for text in texts),
        dropped=counts,
        finished=rejected_all or documents == plan.target or batches == plan.batches,
    )


def _filtered(
    tokenizer: Tokenizer,
    request: Synthesis,
    prompts: list[Prompt],
    texts: list[Sampled],
    seen: NearDuplicateIndex,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    assert request.filters is not None
    for prompt, text in zip(prompts, texts, strict=True):
        row = _row(tokenizer, f"synthetic:{request.teacher}", prompt, text)
        written, compared = _written(row), _compared(row)
        reason = rejection_reason(written, request.filters, ended=text.ended)
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


def _row(tokenizer: Tokenizer, source: str, prompt: Prompt, text: Sampled) -> dict[str, Any]:
    # Decoded together with the words of a prompt, so that the space between them is right.
    ids = text.ids if prompt.messages else prompt.ids + text.ids
    written = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if not text.ended:
        written = written.rstrip("\ufffd")  # a character that the limit truncated
    if not prompt.messages:
        return {"text": written, "source": source}
    messages = [*prompt.messages, {"role": "assistant", "content": written}]
    offered = {"tools": list(prompt.tools)} if prompt.tools else {}
    rendered = render_chat(tokenizer, messages, "an answer", tools=prompt.tools)
    return {"text": rendered, "source": source, "messages": messages, **offered}


def _written(row: dict[str, Any]) -> str:
    """The text that the filters check: of a conversation, the answer."""
    return str(row["messages"][-1]["content"] if "messages" in row else row["text"])


def _compared(row: dict[str, Any]) -> str:
    """The text compared for duplicates: a short answer counts with its question."""
    written = _written(row)
    if "messages" not in row or len(words(written)) >= _STOCK_PHRASE:
        return written
    question = " ".join(message["content"] for message in row["messages"][:-1])
    return f"{question}\n{written}"


def _checked(request: Synthesis) -> Synthesis:
    request.sampling.check()
    if request.filters:
        request.filters.check()
    if not 0 < request.jaccard_threshold <= 1:
        raise BadInput(
            f"jaccard_threshold is {request.jaccard_threshold}, expected above 0 and up to 1"
        )
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
        "jaccard_threshold": request.jaccard_threshold,
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
    if now.documents < plan.target and (accepted := now.documents - first.documents):
        eta_s = min(eta_s or 0.0, (plan.target - now.documents) * seconds / accepted)
    elif not now.documents:
        eta_s = None
    if now.finished:
        eta_s = 0.0
    return Progress(now.documents, plan.target, now.tokens, tokens_s, dict(now.dropped), eta_s)


def _nothing_accepted(done: Manifest) -> str:
    reasons = sorted(done.dropped.items(), key=lambda item: -item[1])
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    total = sum(done.dropped.values())
    return f"none of {total} texts was accepted ({counts}); {_ADVICE[reasons[0][0]]}"


_FILTERS: dict[type, Filters] = {FreeText: FREE_TEXT, Answers: ANSWERS}
