"""Who runs when, what is kept, and what happens to the others when one fails."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.bench.measure import Samples, measure
from edgelm.bench.peers.engines import MeasuredEngine, bundle_engines
from edgelm.bench.quality import Quality
from edgelm.bench.workload import Test as Job
from edgelm.bundle import read_manifest
from edgelm.checkpoint.source import open_checkpoint
from edgelm.devices.sensors import Sampler
from edgelm.errors import MissingPackage
from edgelm.export.source.text import GATE
from edgelm.python310 import Self
from tests.bench.conftest import FakeEngineMaker

PP, TG, DEEP = Job("pp", 6), Job("tg", 3), Job("tg", 3, 4)
CONTEXT = 32


def run(
    engines: list[MeasuredEngine],
    tests: list[Job],
    rounds: int = 2,
    quality: Quality | None = None,
    sensors: Sampler | None = None,
) -> tuple[dict[str, Samples], dict[str, str]]:
    samples, absent = measure(
        engines,
        tests,
        rounds=rounds,
        context=CONTEXT,
        threads=1,
        quality=quality,
        sensors=sensors,
    )
    return (
        {one.engine.name: one for one in samples},
        {one.name: one.reason for one in absent},
    )


@pytest.fixture
def quality(source: Path, bundle: Path) -> Quality:
    return Quality(open_checkpoint(source), bundle / "tokenizer.json", GATE, context=CONTEXT)


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_sample_a_round_without_the_warm_up(fake: FakeEngineMaker, rounds: int) -> None:
    samples, absent = run([fake("good")], [PP, TG, DEEP], rounds)
    one = samples["good"]
    assert absent == {}
    assert {test.name: len(times) for test, times in one.prefill_ms.items()} == {"pp6": rounds}
    steps = {test.name: [len(times) for times in runs] for test, runs in one.steps_ms.items()}
    assert steps == {"tg3": [3] * rounds, "tg3@d4": [3] * rounds}
    assert {test.name: len(times) for test, times in one.ttft_ms.items()} == {
        "tg3": rounds,
        "tg3@d4": rounds,
    }
    assert one.load_ms == [2.0] * (rounds + 1)
    assert one.figures is None
    assert one.memory["peak_rss_bytes"] > 0
    assert one.loaded["context"] == CONTEXT


def test_loads_in_fresh_processes_are_at_most_three(
    fake: FakeEngineMaker, calls: Callable[[], list[str]]
) -> None:
    samples, _ = run([fake("good")], [PP], rounds=7)
    assert calls().count("good load") == 4
    assert len(samples["good"].load_ms) == 4


def test_engines_take_turns_within_each_test_of_each_round(
    fake: FakeEngineMaker, calls: Callable[[], list[str]]
) -> None:
    run([fake("one"), fake("two")], [PP, replace(PP, tokens=9)], rounds=2)
    ran = [call.split() for call in calls() if "prefill" in call]
    turns = ["one 6", "two 6", "one 9", "two 9"]
    assert [f"{name} {count}" for name, _, count, *_ in ran] == turns * 3


def test_every_kept_run_has_its_window(fake: FakeEngineMaker) -> None:
    before = time.perf_counter()
    samples, _ = run([fake("one"), fake("two")], [PP, TG], rounds=3)
    windows = [
        window for one in samples.values() for test in (PP, TG) for window in one.windows[test]
    ]
    assert len(windows) == 2 * 2 * 3
    for start, end in windows:
        assert before < start < end < time.perf_counter()
    ordered = sorted(windows)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))


def test_sensors_watch_the_rounds_only(
    fake: FakeEngineMaker, calls: Callable[[], list[str]], quality: Quality
) -> None:
    seen: list[set[str]] = []

    class Watch(Sampler):
        def __enter__(self) -> Self:
            seen.append({call.split()[1] for call in calls()})
            return self

        def __exit__(self, *_: object) -> None:
            seen.append({call.split()[1] for call in calls()})

    run([fake("good")], [PP, TG], quality=quality, sensors=Watch([]))
    assert seen == [{"load"}, {"load", "prefill", "step"}]
    assert any("logits" in call for call in calls())


def test_a_contender_that_does_not_load_is_reported_and_the_rest_go_on(
    fake: FakeEngineMaker,
) -> None:
    samples, absent = run([fake("fails-to-load"), fake("good")], [PP])
    assert list(samples) == ["good"]
    assert absent == {"fails-to-load": "failed: ValueError: no such model"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails-to-decode", "failed: RuntimeError: cannot decode"),
        ("dies-in-prefill", "failed: the process ended: out of memory"),
    ],
)
def test_a_contender_that_fails_later_drops_out(
    fake: FakeEngineMaker, name: str, reason: str
) -> None:
    samples, absent = run([fake(name), fake("good")], [PP, TG])
    assert list(samples) == ["good"]
    assert absent == {name: reason}
    assert [len(runs) for runs in samples["good"].steps_ms.values()] == [2]


def test_a_model_that_cannot_be_prepared_is_reported(fake: FakeEngineMaker) -> None:
    def prepare() -> Path:
        raise MissingPackage("the converter is not installed")

    broken = replace(fake("broken"), prepare=prepare)
    samples, absent = run([broken, fake("good")], [PP])
    assert list(samples) == ["good"]
    assert absent == {"broken": "failed: the converter is not installed"}


def test_a_contender_that_cannot_be_judged_does_not_stop_the_others(
    fake: FakeEngineMaker, quality: Quality
) -> None:
    samples, absent = run([fake("fails-in-logits"), fake("good")], [PP], quality=quality)
    assert samples["good"].figures is not None
    judged = samples.get("fails-in-logits")
    # Without its figures, or among the absent: but said, and the others measured.
    assert "one row only" in absent.get("fails-in-logits", "")
    assert judged is None or judged.figures is None


def test_bundles_are_measured_and_judged(bundle: Path, int8_bundle: Path, quality: Quality) -> None:
    folders = (bundle, int8_bundle)
    ours = bundle_engines({folder: read_manifest(folder) for folder in folders})
    samples, absent = run(ours, [PP, TG, DEEP], quality=quality)
    assert absent == {}
    assert list(samples) == ["edgelm fp32 tiny-fp32", "edgelm int8 tiny-int8"]
    exact, rounded = (one.figures for one in samples.values())
    assert exact is not None
    assert rounded is not None
    assert exact.kl < 1e-6 < rounded.kl < 0.05
    assert exact.top1 == 1.0
    assert exact.tokens == 8 * CONTEXT
    for one in samples.values():
        assert min(one.prefill_ms[PP]) > 0
        assert min(one.load_ms) > 0


def test_a_uniform_engine_is_as_far_as_its_logits_say(
    fake: FakeEngineMaker, quality: Quality, source: Path
) -> None:
    samples, _ = run([fake("good")], [PP], rounds=1, quality=quality)
    figures = samples["good"].figures
    assert figures is not None
    vocab_size = open_checkpoint(source).spec.vocab_size
    assert figures.perplexity == pytest.approx(vocab_size, rel=1e-4)  # all logits are zero
    assert figures.kl > 0.1
