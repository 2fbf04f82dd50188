"""The verdict: is it fast enough, is it good enough, what limits it, and how sure that is."""

from dataclasses import dataclass

from edgelm.bench.report.records import Expectation, Report, Result
from edgelm.bench.report.selection import (
    engines,
    own_results,
    test_of,
    typical_decode,
    typical_prompt,
)
from edgelm.bench.report.statistics import outliers
from edgelm.page.page import Statement
from edgelm.perplexity import ratio_text
from edgelm.planning import Estimate, short

# Adults read 238 words a minute silently (Brysbaert 2019, Journal of Memory and Language 109);
# a token of English text is about three quarters of a word.
READING_TOKENS_PER_SECOND = 238 / 60 / 0.75
# After ten seconds people turn to something else (Nielsen 1993, Usability Engineering).
MAX_FIRST_TOKEN_MS = 10_000.0
_SINGLE_ROUND_NOISE = 0.2
_MIN_NOISE = 0.01
_MAX_PEERS = 4  # in the headline; the table has them all
_BANDWIDTH_BOUND, _PARTLY_BOUND = 0.6, 0.3  # shares of the bound
_BATCHING_GAIN = 2.0  # from here on a prompt does not wait for weights to be read


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence, three statements with reasons, and how large a difference means something."""

    headline: str
    statements: tuple[Statement, ...]
    noise: str


def verdict(report: Report) -> Verdict:
    """What a report says, without its tables."""
    own = own_results(report)
    statements = (_speed(report, own), _quality(report, own), _limit(report, own))
    return Verdict(_headline(report, own), statements, _noise(report))


def at_depth(depth: int) -> str:
    """How a depth reads behind a speed."""
    return f"at {depth:,} tokens of context" if depth else "from an empty context"


def _headline(report: Report, own: list[Result]) -> str:
    if not own:
        return f"{report.source}: no bundle of edgelm was measured."
    decode = typical_decode(own)
    parts = []
    if decode:
        rate = f"{_rate(decode)} tokens/s {at_depth(test_of(decode).depth)}"
        parts.append(rate + _peers(report, decode))
    parts.append(f"{own[0].weight_bytes / 1e6:.0f} MB of weights")
    if report.gate:
        limit = report.gate.threshold.max_kl
        outcome = "passed" if report.gate.passed else "failed"
        parts.append(f"quality gate {outcome} (KL {report.gate.figures.kl:.3g}, limit {limit:g})")
    return f"{report.source} on {_where(report, own[0])}: {', '.join(parts)}."


def _where(report: Report, result: Result) -> str:
    machine = report.machine
    if result.device == "gpu" and machine.gpu:
        return machine.gpu
    return f"{machine.cpu} ({machine.threads} threads)"


def _peers(report: Report, ours: Result) -> str:
    others = [
        tests[ours.test]
        for name, tests in engines(report).items()
        if name != ours.engine and ours.test in tests
    ]
    others.sort(key=lambda one: -one.tokens_per_second.median)
    shown = [f"{one.engine} {_rate(one)}" for one in others[:_MAX_PEERS]]
    if len(others) > _MAX_PEERS:
        shown.append(f"{len(others) - _MAX_PEERS} more in the table")
    return f" ({', '.join(shown)})" if shown else ""


def _speed(report: Report, own: list[Result]) -> Statement:
    question = "Fast enough?"
    decode, prompt = typical_decode(own), typical_prompt(own)
    if decode is None:
        return Statement(question, "Not measured.", "No generation test of edgelm was run.")
    rate = decode.tokens_per_second.median
    reasons = [
        f"{_rate(decode)} tokens/s {at_depth(test_of(decode).depth)} is "
        f"{_times(rate / READING_TOKENS_PER_SECOND)} reading speed "
        f"({READING_TOKENS_PER_SECOND:.1f} tokens/s)."
    ]
    if prompt:
        reasons.append(
            f"The first token of a {test_of(prompt).tokens:,}-token prompt comes after "
            f"{seconds(prompt.ttft_ms)} (limit {MAX_FIRST_TOKEN_MS / 1e3:g} s)."
        )
    if report.expected:
        reasons.append(_against_plan(report, report.expected, decode, prompt))
    if report.throttled:
        return Statement(question, "Not known.", " ".join(["The machine throttled.", *reasons]))
    patient = prompt is None or prompt.ttft_ms <= MAX_FIRST_TOKEN_MS
    holds = rate >= READING_TOKENS_PER_SECOND and patient
    return Statement(question, "Yes." if holds else "No.", " ".join(reasons), holds)


def _against_plan(
    report: Report, expected: Expectation, decode: Result, prompt: Result | None
) -> str:
    rate, planned = decode.tokens_per_second.median, expected.tokens_per_second
    here = _bandwidth(report, decode)
    measured = f", {short(here)} GB/s measured here" if here else ""
    text = (
        f"The plan for {report.target} ({short(expected.bandwidth_gb_s)} GB/s{measured}) predicts "
        f"{_range(planned)} tokens/s, so decoding is "
        f"{_position(rate, planned, 'slower than planned', 'faster than planned')}"
    )
    if prompt is None:
        return text + "."
    first = expected.first_token_ms
    return (
        f"{text}, and a first token after {_range(first)} ms, so the prompt is "
        f"{_position(prompt.ttft_ms, first, 'faster than planned', 'slower than planned')}."
    )


def _position(value: float, planned: Estimate, below: str, above: str) -> str:
    if value < planned.low:
        return below
    return above if value > planned.high else "as planned"


def _quality(report: Report, own: list[Result]) -> Statement:
    question = "Good enough?"
    here = ""
    if own and own[0].kl is not None and own[0].top1 is not None:
        here = (
            f"Measured here through the runtime: KL {own[0].kl:.3g}, top-1 {own[0].top1:.1%} on "
            f"{report.quality_tokens:,} tokens."
        )
    gate = report.gate
    if gate is None:
        unknown = "There is no result of a quality gate."
        return Statement(question, "Not checked.", " ".join(filter(None, [unknown, here])))
    limit, figures = gate.threshold, gate.figures
    reason = (
        f"Quality gate of the {gate.gate_class} class, at export: KL {figures.kl:.3g} (limit "
        f"{limit.max_kl:g}), top-1 {figures.top1:.1%} (at least {limit.min_top1:.1%}), perplexity "
        f"{ratio_text(figures.perplexity_ratio)} (limit ×{limit.max_perplexity_ratio:g}). {here}"
    )
    return Statement(question, "Yes." if gate.passed else "No.", reason.strip(), gate.passed)


def _limit(report: Report, own: list[Result]) -> Statement:
    question = "What limits it?"
    decode, prompt = typical_decode(own), typical_prompt(own)
    if decode is None or decode.bound_share is None:
        planned = f"The plan expects {report.expected.binds}." if report.expected else ""
        return Statement(question, "Not known: no memory bandwidth was measured.", planned)
    bandwidth = short(_bandwidth(report, decode))
    reasons = [
        f"Decoding {at_depth(test_of(decode).depth)} reaches {decode.bound_share:.0%} of the speed "
        f"that the measured memory bandwidth of {bandwidth} GB/s allows."
    ]
    reasons += _slow_down(own)
    if prompt:
        gain = prompt.tokens_per_second.median / decode.tokens_per_second.median
        if gain >= _BATCHING_GAIN:
            reasons.append(
                f"Prompts run at {_rate(prompt)} tokens/s, {_times(gain)} the speed of decoding: "
                "they are limited by arithmetic."
            )
    return Statement(question, _bound(decode.bound_share), " ".join(reasons))


def _bandwidth(report: Report, result: Result) -> float:
    """GB/s of the memory that an engine computes from; 0 where nobody measured it."""
    machine = report.machine
    return machine.gpu_gb_s if result.device == "gpu" else machine.read_gb_s


def _bound(share: float) -> str:
    if share >= _BANDWIDTH_BOUND:
        return "Memory bandwidth."
    if share >= _PARTLY_BOUND:
        return "Partly memory bandwidth, partly arithmetic and overhead."
    return "Arithmetic and overhead, not memory bandwidth."


def _slow_down(own: list[Result]) -> list[str]:
    """What a longer context costs, from the least to the greatest depth."""
    decode = sorted(
        (one for one in own if test_of(one).kind == "tg"), key=lambda one: test_of(one).depth
    )
    if not decode or test_of(decode[0]).depth == test_of(decode[-1]).depth:
        return []
    first, last = decode[0], decode[-1]
    return [
        f"With the context growing from {test_of(first).depth:,} to {test_of(last).depth:,} tokens "
        f"it goes from {_rate(first)} to {_rate(last)} tokens/s."
    ]


def _noise(report: Report) -> str:
    if report.rounds == 1:
        return f"Single round: treat differences under {_SINGLE_ROUND_NOISE:.0%} as noise."
    spreads = [
        (one.tokens_per_second.p90 - one.tokens_per_second.p10) / one.tokens_per_second.median
        for tests in engines(report).values()
        for one in (typical_decode(list(tests.values())), typical_prompt(list(tests.values())))
        if one
    ]
    noise = max([_MIN_NOISE, *spreads])
    lines = [
        f"{report.rounds} rounds: from the 10th to the 90th percentile they differ by up to "
        f"{noise:.0%}; treat smaller differences as noise."
    ]
    count = sum(len(outliers(one.tokens_per_second.samples)) for one in report.results)
    if count:
        lines.append(f"Rounds far from the others: {count}, marked † in the table.")
    return " ".join(lines)


def seconds(ms: float) -> str:
    """A time in the unit that reads best."""
    return f"{short(ms)} ms" if ms < 1000 else f"{ms / 1e3:.1f} s"


def _times(factor: float) -> str:
    return f"{factor:.0f} times" if factor >= 10 else f"{factor:.1f} times"


def _rate(result: Result) -> str:
    return short(result.tokens_per_second.median)


def _range(planned: Estimate) -> str:
    return f"{short(planned.value)} ({short(planned.low)} to {short(planned.high)})"
