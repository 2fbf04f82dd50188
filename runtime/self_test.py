"""The self-test: whether this machine's engine computes what was computed at export.

The engine runs the gate's sample and generates a few greedy answers; both are compared with what
the exporting machine recorded. This detects a driver, library or kernel that changes the results,
and a bundle whose template, end-of-turn tokens or weights are wrong.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.bundle.records.gate_sample import (
    GateSample,
    Predictions,
    coarse_divergence,
    measure_sample,
    read_sample,
    sequence_predictions,
)
from edgelm.bundle.records.gates import GATES, Threshold, gate_class, passes
from edgelm.bundle.records.self_test import RecordedAnswer, SelfTestRecord, read_self_test
from edgelm.devices.detection.cpu import read_cpu
from edgelm.devices.detection.probes import Probes
from edgelm.errors import EdgeLMError
from edgelm.runtime.embedding.self_test import check_vectors
from edgelm.runtime.engines.open import engine_version
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.sequences import common_prefix

SECONDS = 30.0
# The same processor and library compute the same; the record is in fp16.
_SAME_MACHINE_KL = 2e-5
_SAME_MACHINE_TOP1 = 0.995
# The same graph on another CPU differs by the order of its sums, and int8 activations by their
# rounding: 0.003 to 0.005 nats from AVX-512 to AVX2 or ARM (docs/results/, emulated processors).
_SAME_GRAPH_KL = 0.01
_SAME_GRAPH_TOP1 = 0.98
# Another order of sums moves logits to either side: the distance from the source hardly grows.
_SAME_GRAPH_LOSS = 0.02  # of the gate's limit
_SIGNIFICANT = 4.0  # standard errors
_NEAR_TIE = 0.5  # nats between two tokens that rounding may swap


@dataclass(frozen=True, slots=True)
class SelfTestCheck:
    """One comparison; `holds` is None where the bundle has nothing to compare with."""

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """All comparisons of one bundle on this machine."""

    engine: str
    exported_on: str
    seconds: float
    checks: tuple[SelfTestCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that was compared differs."""
        return all(check.holds is not False for check in self.checks)

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare."""
        return any(check.holds is not None for check in self.checks)

    def lines(self) -> list[str]:
        """The result as lines of text."""
        signs = {True: "ok", False: "DIFFERS", None: "not compared"}
        lines = [f"self-test on {self.engine}, {self.seconds:.1f} s{self.exported_on}"]
        lines += [f"  {one.name}: {signs[one.holds]}: {one.detail}" for one in self.checks]
        verdict = "passed" if self.passed else "FAILED: do not use this bundle on this machine"
        return [*lines, f"self-test {verdict if self.compared else 'had nothing to compare'}"]


def self_test(
    bundle: str | Path, *, threads: int | None = None, seconds: float = SECONDS
) -> SelfTestResult:
    """Compare this machine's engine with what export recorded; takes at most about `seconds`.

    Raises:
        BadBundle, MissingPackage, DoesNotFit: the bundle cannot be loaded.
    """
    with load(bundle, threads=threads) as model:
        return self_test_model(model, seconds=seconds)


def self_test_model(model: LanguageModel, *, seconds: float = SECONDS) -> SelfTestResult:
    """The same for a loaded model that nothing else uses meanwhile."""
    started = time.perf_counter()
    manifest = model.manifest
    if manifest.embedding is not None:
        checks = [SelfTestCheck(*check_vectors(model, manifest.embedding.sample))]
        engine = f"{manifest.engine.name} {engine_version(manifest)}"
        return SelfTestResult(engine, "", time.perf_counter() - started, tuple(checks))
    sample = read_sample(model.folder, manifest)
    record = read_self_test(model.folder, manifest)
    checks = []
    if record is not None:
        checks += [_check_prompts(model, record), _check_answers(model, record)]
    checks.append(_check_logits(model, sample, record, started + seconds))
    exported_on = ""
    if record is not None:
        exported_on = f"; exported on {record.machine} with {record.engine} {record.engine_version}"
    engine = f"{manifest.engine.name} {engine_version(manifest)}"
    return SelfTestResult(engine, exported_on, time.perf_counter() - started, tuple(checks))


def processor() -> str:
    """The processor of this machine and its instructions, which decide the kernels."""
    cpu, _ = read_cpu(Probes())
    return f"{cpu.name} ({' '.join(cpu.isa)})"


def _check_logits(
    model: LanguageModel,
    sample: GateSample | None,
    record: SelfTestRecord | None,
    until: float,
) -> SelfTestCheck:
    name = "logits"
    if sample is None:
        return SelfTestCheck(name, None, "the bundle has no sample; export it with --gate on")
    if record is None:
        return _against_source(model, sample)
    try:
        known, top1 = record.arrays(sample)
    except ValueError:
        return SelfTestCheck(
            name, False, "the record of the self-test does not belong to this sample"
        )
    drift, worse, agreed = list[float](), list[float](), 0
    for number, tokens in enumerate(sample.tokens):
        if drift and time.perf_counter() > until:
            break
        ours = sequence_predictions(model.session, tokens, sample.top_tokens[number])
        source, chosen = sample.top_logprobs[number], ours.logprobs
        drift += coarse_divergence(known[number], chosen).tolist()
        gap = coarse_divergence(source, chosen) - coarse_divergence(source, known[number])
        worse += gap.tolist()
        agreed += int(agree(ours, top1[number], sample.top_tokens[number]).sum())
    limits = _limits(model, record)
    found = _Drift(float(np.mean(drift)), agreed / len(drift), *_mean(worse), len(drift))
    return SelfTestCheck(name, found.within(limits), found.text(limits))


def agree(
    ours: Predictions, recorded: npt.NDArray[np.integer[Any]], tokens: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.bool_]:
    """Whether our top tokens [L] are those recorded, or hardly likelier here.

    Log-probabilities are known of the sample's `tokens` [L, N]; any other token counts as
    different.
    """
    likeliest = np.where(tokens == ours.top1[:, None], ours.logprobs, np.inf).min(axis=1)
    known = np.where(tokens == recorded[:, None], ours.logprobs, -np.inf).max(axis=1)
    agreeing: npt.NDArray[np.bool_] = ours.top1 == recorded
    agreeing |= likeliest - known <= _NEAR_TIE
    return agreeing


class _Limits(NamedTuple):
    kl: float
    top1: float
    loss: float


class _Drift(NamedTuple):
    """Distance from the exporting machine, and how much farther from the source than it."""

    kl: float
    top1: float
    loss: float
    loss_error: float
    tokens: int

    def within(self, limits: _Limits) -> bool:
        # Not `kl > limits.kl`: NaN fails.
        near = self.kl <= limits.kl and self.top1 >= limits.top1
        return near and self.loss <= max(limits.loss, _SIGNIFICANT * self.loss_error)

    def text(self, limits: _Limits) -> str:
        loss = round(self.loss, 6) + 0.0  # no "-0.000000"
        return (
            f"KL {max(self.kl, 0.0):.6f} nats per token from the exporting machine's (limit "
            f"{limits.kl:g}), same top token, up to near ties, {self.top1:.1%} (at least "
            f"{limits.top1:.1%}), KL from the source {loss:+.6f} ± {self.loss_error:.6f} (limit "
            f"{limits.loss:g}), {self.tokens} tokens"
        )


def _mean(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))


def _limits(model: LanguageModel, record: SelfTestRecord) -> _Limits:
    """The gate's limits where other kernels run than were measured at export."""
    _, gate = _gate(model)
    if record.dequantized or record.engine != model.manifest.engine.name:
        kl = max(gate.max_kl, _SAME_GRAPH_KL)
        return _Limits(kl, min(gate.min_top1, _SAME_GRAPH_TOP1), kl)
    if (record.machine, record.engine_version) == (processor(), engine_version(model.manifest)):
        return _Limits(_SAME_MACHINE_KL, _SAME_MACHINE_TOP1, _SAME_MACHINE_KL)
    return _Limits(_SAME_GRAPH_KL, _SAME_GRAPH_TOP1, max(_SAME_GRAPH_LOSS * gate.max_kl, 1e-5))


def _gate(model: LanguageModel) -> tuple[str, Threshold]:
    """Class and limits of the gate, or those of the bundle's precisions without one."""
    manifest = model.manifest
    if manifest.gate is not None:
        return manifest.gate.gate_class, manifest.gate.threshold
    name = gate_class(manifest.precision.values(), manifest.kv)
    return name, GATES[name]


def _against_source(model: LanguageModel, sample: GateSample) -> SelfTestCheck:
    """For a bundle of an older edgelm: within the gate's limits of the source."""
    figures = measure_sample(sample, model.session)
    name, limits = _gate(model)
    return SelfTestCheck(
        "logits",
        passes(figures, limits),
        f"KL {figures.kl:.4f} nats per token from the source, same top token {figures.top1:.1%} "
        f"(the {name} gate); the bundle does not say what its exporting machine computed",
    )


def _check_prompts(model: LanguageModel, record: SelfTestRecord) -> SelfTestCheck:
    """The tokenizer and the chat template give the same tokens."""
    for answer in record.answers:
        try:
            ids = tuple(int(token) for token in prompt_tokens(model, answer.prompt, record.chat))
        except EdgeLMError as error:
            return SelfTestCheck("prompts", False, f"{answer.prompt!r}: {error}")
        if ids != answer.prompt_tokens:
            at = common_prefix(ids, answer.prompt_tokens)
            return SelfTestCheck(
                "prompts",
                False,
                f"{answer.prompt!r} has other tokens than at export, from token {at} on: "
                f"{model.tokenizer.decode(list(ids[at : at + 8]), special=True)!r}, expected "
                f"{model.tokenizer.decode(list(answer.prompt_tokens[at : at + 8]), special=True)!r}"
                "; the chat template or the tokenizer was changed",
            )
    return SelfTestCheck("prompts", True, f"{len(record.answers)} prompts have the same tokens")


def prompt_tokens(model: LanguageModel, prompt: str, chat: bool) -> list[int]:
    """Token ids of a prompt: in the chat template as a message of the user, or as it is."""
    if not chat:
        return [int(token) for token in model.tokenizer.encode(prompt)]
    return [int(token) for token in model.chat_tokens(prompt, enable_thinking=False)]


def _check_answers(model: LanguageModel, record: SelfTestRecord) -> SelfTestCheck:
    """Greedy answers are the same, up to a choice that rounding may decide."""
    same, tied = 0, 0
    for answer in record.answers:
        options = Options(**GREEDY, max_tokens=len(answer.tokens))
        prompt = [*answer.prompt_tokens]
        reply = model.generate(prompt, **options)
        ours, known = reply.tokens, list(answer.tokens)
        if ours == known:
            if (reply.stop_reason == "eos_token") != answer.ended:
                return SelfTestCheck("answers", False, _end_differs(answer))
            same += 1
            continue
        at = common_prefix(ours, known)
        if at >= min(len(ours), len(known)):
            return SelfTestCheck("answers", False, _end_differs(answer))
        gap = _gap(model, [*prompt, *known[:at]], ours[at], known[at])
        if not gap <= _NEAR_TIE:
            return SelfTestCheck(
                "answers",
                False,
                f"the answer to {answer.prompt!r} differs from the recorded one from token {at} "
                f"on; the two tokens are {gap:.2f} nats apart, expected at most {_NEAR_TIE}",
            )
        tied += 1
    detail = f"{same} of {len(record.answers)} greedy answers are the same"
    return SelfTestCheck("answers", True, detail + (f", {tied} differ by rounding" if tied else ""))


def _end_differs(answer: RecordedAnswer) -> str:
    where = "ended" if answer.ended else "did not end"
    return (
        f"the answer to {answer.prompt!r} {where} after {len(answer.tokens)} tokens at export, but "
        "not here: the end-of-turn tokens of generation_config.json were changed"
    )


def _gap(model: LanguageModel, tokens: list[int], ours: int, known: int) -> float:
    """By how many nats our token is likelier than the recorded one."""
    session = model.session
    session.rewind(0)
    row = session.advance(np.array(tokens, dtype=np.int64))[-1]
    return float(row[ours]) - float(row[known])
