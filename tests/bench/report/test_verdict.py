"""The verdict by hand-made reports: each answer, each reason, each way of not knowing."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.report.expectation import expectation
from edgelm.bench.report.records import Expectation, Report
from edgelm.bench.report.statistics import Percentiles
from edgelm.bench.report.verdict import verdict
from edgelm.bundle import Manifest, read_manifest
from edgelm.bundle.records.gates import Figures, GateResult
from edgelm.planning import Estimate
from tests.bench.records import WITH_GPU, on_gpu, report, samples, watched
from tests.bench.records import timed as slow

GATE = GateResult(
    gate_class="8-bit",
    figures=Figures(0.0051, 0.961, 1.004, 20.0, 4096),
    passed=True,
    enforced=True,
    text="gate.jsonl",
    text_sha256="0",
)
EXPECTED = Expectation(
    prompt=100,
    first_token_ms=Estimate(90.0, 80.0, 95.0),
    depth=50,
    tokens_per_second=Estimate(40.0, 30.0, 60.0),
    memory_bytes=60_000_000,
    bandwidth_gb_s=12.0,
    binds="memory bandwidth",
    basis="guesses",
)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture
def made(manifest: Manifest) -> Report:
    """Ours at 50 tokens/s at depth 50, a peer at 25; a prompt of 100 tokens in 100 ms."""
    others = [samples("llama.cpp Q4_0", slower=2.0), samples("a peer")]
    return changed(report(manifest, *others), gate=GATE, expected=EXPECTED)


def changed(made: Report, **fields: Any) -> Report:
    return msgspec.structs.replace(made, **fields)


def with_results(made: Report, **fields: Any) -> Report:
    results = tuple(msgspec.structs.replace(one, **fields) for one in made.results)
    return changed(made, results=results)


def test_headline(made: Report) -> None:
    assert verdict(made).headline == (
        "tiny on Test CPU (2 threads): 50 tokens/s at 50 tokens of context (a peer 50, "
        "llama.cpp Q4_0 25), 1 MB of weights, quality gate passed (KL 0.0051, limit 0.01)."
    )


def test_a_headline_does_not_list_everybody(manifest: Manifest) -> None:
    made = report(manifest, *(samples(f"peer {n}", slower=1.0 + n) for n in range(6)))
    assert "peer 3 12.5, 2 more in the table)" in verdict(made).headline


def test_on_a_gpu_the_headline_names_it(manifest: Manifest) -> None:
    made = report(manifest, ours=on_gpu("edgelm int8 tiny"), machine=WITH_GPU)
    assert verdict(made).headline.startswith("tiny on Test GPU: ")
    assert "bandwidth of 100 GB/s" in verdict(made).statements[2].reason


def test_fast_enough_against_reading_and_the_plan(made: Report) -> None:
    speed = verdict(made).statements[0]
    assert (speed.question, speed.answer, speed.holds) == ("Fast enough?", "Yes.", True)
    assert speed.reason == (
        "50 tokens/s at 50 tokens of context is 9.5 times reading speed (5.3 tokens/s). The first "
        "token of a 100-token prompt comes after 100 ms (limit 10 s). The plan for cpu (12 GB/s, "
        "10 GB/s measured here) predicts 40 (30 to 60) tokens/s, so decoding is as planned, and "
        "a first token after 90 (80 to 95) ms, so the prompt is slower than planned."
    )


@pytest.mark.parametrize(
    ("planned", "text"),
    [
        (Estimate(70.0, 60.0, 80.0), "decoding is slower than planned"),
        (Estimate(30.0, 20.0, 40.0), "decoding is faster than planned"),
    ],
)
def test_beside_the_plan(made: Report, planned: Estimate, text: str) -> None:
    expected = msgspec.structs.replace(EXPECTED, tokens_per_second=planned)
    assert text in verdict(changed(made, expected=expected)).statements[0].reason


def test_slower_than_reading_is_not_fast_enough(manifest: Manifest) -> None:
    speed = verdict(report(manifest, ours=slow("edgelm int8 tiny"))).statements[0]
    assert (speed.answer, speed.holds) == ("No.", False)
    assert speed.reason.startswith("0.5 tokens/s at 50 tokens of context is 0.1 times reading")


def test_a_long_wait_is_not_fast_enough(made: Report) -> None:
    speed = verdict(with_results(made, ttft_ms=10_001.0)).statements[0]
    assert (speed.answer, speed.holds) == ("No.", False)


def test_a_throttled_run_has_no_verdict_of_speed(manifest: Manifest) -> None:
    sensors = watched(throttled=(3.0, 4.0))
    made = report(manifest, ours=slow("edgelm int8 tiny"), sensors=sensors)
    speed = verdict(made).statements[0]
    assert (speed.answer, speed.holds) == ("Not known.", None)


def test_quality_is_the_gate_s_and_what_was_measured(made: Report) -> None:
    quality = verdict(made).statements[1]
    assert (quality.answer, quality.holds) == ("Yes.", True)
    assert quality.reason == (
        "Quality gate of the 8-bit class, at export: KL 0.0051 (limit 0.01), top-1 96.1% (at least "
        "94.0%), perplexity ×1.004 (limit ×1.02). Measured here through the runtime: KL 0.0123, "
        "top-1 95.6% on 2,048 tokens."
    )


def test_a_failed_gate_is_not_good_enough(made: Report) -> None:
    failed = verdict(changed(made, gate=msgspec.structs.replace(GATE, passed=False)))
    assert (failed.statements[1].answer, failed.statements[1].holds) == ("No.", False)
    assert "quality gate failed" in failed.headline


def test_without_a_gate_quality_is_not_checked(made: Report) -> None:
    quality = verdict(changed(made, gate=None)).statements[1]
    assert (quality.answer, quality.holds) == ("Not checked.", None)
    assert "KL 0.0123" in quality.reason
    nothing = verdict(with_results(changed(made, gate=None), kl=None, top1=None))
    assert nothing.statements[1].reason == "There is no result of a quality gate."


@pytest.mark.parametrize(
    ("share", "answer"),
    [
        (0.7, "Memory bandwidth."),
        (0.45, "Partly memory bandwidth, partly arithmetic and overhead."),
        (0.01, "Arithmetic and overhead, not memory bandwidth."),
    ],
)
def test_what_limits_it(made: Report, share: float, answer: str) -> None:
    limit = verdict(with_results(made, bound_share=share)).statements[2]
    assert (limit.question, limit.answer, limit.holds) == ("What limits it?", answer, None)
    assert limit.reason == (
        f"Decoding at 50 tokens of context reaches {share:.0%} of the speed that the measured "
        "memory bandwidth of 10 GB/s allows. With the context growing from 0 to 50 tokens it goes "
        "from 100 to 50 tokens/s. Prompts run at 1,000 tokens/s, 20 times the speed of decoding: "
        "they are limited by arithmetic."
    )


def test_without_a_bandwidth_the_plan_says_what_limits(made: Report) -> None:
    limit = verdict(with_results(made, bound_share=None)).statements[2]
    assert limit.answer == "Not known: no memory bandwidth was measured."
    assert limit.reason == "The plan expects memory bandwidth."


def test_noise(made: Report) -> None:
    assert verdict(changed(made, rounds=1)).noise == (
        "Single round: treat differences under 20% as noise."
    )
    # Prompts at 600 to 1,800 tokens/s around 1,000.
    assert verdict(made).noise == (
        "3 rounds: from the 10th to the 90th percentile they differ by up to 120%; treat smaller "
        "differences as noise."
    )


def test_outliers_are_counted(made: Report) -> None:
    rates = Percentiles.from_samples([50.0, 50.0, 51.0, 50.0, 20.0])
    apart = with_results(made, tokens_per_second=rates)
    assert verdict(apart).noise.endswith("Rounds far from the others: 9, marked † in the table.")


def test_without_a_bundle_there_is_nothing_to_judge(made: Report) -> None:
    peers = tuple(one for one in made.results if one.engine == "a peer")
    outcome = verdict(changed(made, results=peers, gate=None, expected=None))
    assert outcome.headline == "tiny: no bundle of edgelm was measured."
    assert [one.holds for one in outcome.statements] == [None] * 3
    nothing = verdict(changed(made, results=(), rounds=3))
    assert nothing.statements[0].answer == "Not measured."


def test_the_plan_is_for_the_tests_that_were_run(manifest: Manifest) -> None:
    results = report(manifest).results
    expected = expectation(manifest, results)
    assert expected is not None
    assert (expected.prompt, expected.depth) == (100, 50)
    assert expected.tokens_per_second.low < expected.tokens_per_second.high
    assert expected.bandwidth_gb_s > 0


def test_an_unknown_target_has_no_plan(manifest: Manifest) -> None:
    other = msgspec.structs.replace(manifest, target="a board of next year")
    assert expectation(other, report(manifest).results) is None
    made = report(other, absent=(SkippedEngine("peer", "gone"),))
    assert made.expected is None
    assert "plan" not in verdict(made).statements[0].reason
