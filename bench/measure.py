"""Run the measurements: raw samples only, no statistics.

Every engine has a process of its own for the whole run. Engines take turns: round by round, test
by test, engine by engine, so that a slow minute of the machine affects all of them. The first
round warms up and is discarded. Loading is measured in fresh processes.
"""

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgelm.bench.peers.engines import MeasuredEngine, SkippedEngine
from edgelm.bench.worker import Worker
from edgelm.bench.workload import Test
from edgelm.bundle.records.gates import Figures
from edgelm.devices.sensors import Sampler
from edgelm.errors import EdgeLMError

if TYPE_CHECKING:
    from edgelm.bench.quality import Quality  # imports torch

log = logging.getLogger(__name__)

_WARM_UP_TOKENS = 32  # generated in the first round, at each test's depth
_MAX_LOADS = 3


@dataclass
class Samples:
    """What one engine's runs took, in milliseconds.

    `windows` are start and end of each run, including the filling of its cache, in seconds of
    `perf_counter`: sensor readings in a window belong to this engine.
    """

    engine: MeasuredEngine
    loaded: dict[str, Any]
    load_ms: list[float]
    figures: Figures | None = None
    memory: dict[str, int] = field(default_factory=dict)
    prefill_ms: dict[Test, list[float]] = field(default_factory=dict)
    ttft_ms: dict[Test, list[float]] = field(default_factory=dict)
    steps_ms: dict[Test, list[list[float]]] = field(default_factory=dict)
    windows: dict[Test, list[tuple[float, float]]] = field(default_factory=dict)


def measure(
    engines: list[MeasuredEngine],
    tests: list[Test],
    *,
    rounds: int,
    context: int,
    threads: int,
    quality: "Quality | None",
    sensors: Sampler | None = None,
) -> tuple[list[Samples], list[SkippedEngine]]:
    """Measure every engine; one that fails is reported, and the others continue.

    The sensors cover the rounds only: neither loading nor quality.
    """
    failed: list[SkippedEngine] = []
    results: list[Samples] = []
    with contextlib.ExitStack() as stack:
        running: list[tuple[Worker, Samples]] = []
        for engine in engines:
            try:
                worker, samples = _start(engine, rounds, context, threads, stack)
            except EdgeLMError as error:
                failed.append(SkippedEngine(engine.name, f"failed: {error}"))
                continue
            running.append((worker, samples))
        with sensors or contextlib.nullcontext():
            failed += _rounds(running, tests, rounds)
        for worker, samples in running:
            try:
                # Before quality: serving never holds the logits of a whole text.
                samples.memory = worker.ask("memory")
                if quality is not None:
                    log.info("measuring the quality of %s", samples.engine.name)
                    samples.figures = quality.measure(worker)
            except EdgeLMError as error:
                failed.append(SkippedEngine(samples.engine.name, f"failed: {error}"))
                continue
            results.append(samples)
    return results, failed


def _rounds(
    running: list[tuple[Worker, Samples]], tests: list[Test], rounds: int
) -> list[SkippedEngine]:
    """All rounds of all tests; an engine that fails leaves `running`."""
    failed: list[SkippedEngine] = []
    for number in range(rounds + 1):
        for test in tests:
            for worker, samples in list(running):
                name = samples.engine.name
                turn = f"round {number}/{rounds}" if number else "warm-up"
                log.info("%s %s, %s", turn, test.name, name)
                try:
                    _run(worker, samples, test, keep=number > 0)
                except EdgeLMError as error:
                    failed.append(SkippedEngine(name, f"failed: {error}"))
                    running.remove((worker, samples))
    return failed


def _start(
    engine: MeasuredEngine, rounds: int, context: int, threads: int, stack: contextlib.ExitStack
) -> tuple[Worker, Samples]:
    path = engine.prepare()
    options = {"path": str(path), "context": context, "threads": threads}
    loads: list[float] = []
    for attempt in range(min(rounds, _MAX_LOADS)):
        log.info("loading %s (%d)", engine.name, attempt + 1)
        with Worker(engine.module, engine.python) as worker:
            loads.append(worker.ask("load", options=options)["load_ms"])
    worker = stack.enter_context(Worker(engine.module, engine.python))
    loaded = worker.ask("load", options=options)
    return worker, Samples(engine, loaded, [*loads, loaded["load_ms"]])


def _run(worker: Worker, samples: Samples, test: Test, *, keep: bool) -> None:
    verb = "prefill" if test.kind == "pp" else "decode"
    tokens = test.tokens if keep or test.kind == "pp" else min(test.tokens, _WARM_UP_TOKENS)
    start = time.perf_counter()
    reply = worker.ask(
        verb, tokens=tokens, depth=test.depth, vocab_size=samples.loaded["vocab_size"]
    )
    end = time.perf_counter()
    if not keep:
        return
    samples.windows.setdefault(test, []).append((start, end))
    if test.kind == "pp":
        samples.prefill_ms.setdefault(test, []).append(reply["ms"])
    else:
        samples.steps_ms.setdefault(test, []).append(reply["steps_ms"])
        samples.ttft_ms.setdefault(test, []).append(reply["ttft_ms"])
