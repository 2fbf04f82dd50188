"""The report: what `report.json` holds, made from raw samples.

`results` has one entry for each engine and test. The schema version rises when a field changes
its meaning; readers should ignore fields that they do not know.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import edgelm
from edgelm.bench.machine import Machine
from edgelm.bench.measure import Samples
from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.peers.sources import Source
from edgelm.bench.report.statistics import Spread, percentile
from edgelm.bench.workload import Test
from edgelm.bundle import Manifest
from edgelm.devices.sensors import Part, Sampler, SensorLog
from edgelm.spec.decoder import DecoderSpec

REPORT_VERSION = 1
# Where an engine computes on the processor, a GPU beside it idles, and its power is not theirs.
_PARTS: dict[str, tuple[Part, ...]] = {"cpu": ("cpu",), "gpu": ("cpu", "gpu")}


class Latency(msgspec.Struct, frozen=True):
    """Percentiles in milliseconds."""

    p50: float
    p90: float
    p99: float


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of the engine's process, in bytes.

    `base` before the model was loaded, `loaded` after; `peak` over all tests; `kv` is the cache
    as allocated, of which untouched pages are not resident. `gpu` is what the process held of a
    GPU's own memory after all tests.
    """

    base: int
    loaded: int
    peak: int
    kv: int
    gpu: int | None = None


class Result(msgspec.Struct, frozen=True):
    """One engine on one test.

    tokens_per_second: prompt tokens (pp) or generated tokens (tg) per second.
    ttft_ms: median time until the prompt's last logits; for tg, of a prompt as long as the depth.
    itl_ms: inter-token latency over all steps of all rounds (tg only).
    bound_share: share of the memory-bandwidth bound that decoding reaches (tg only).
    load_ms: median until the model could run, without hashing and tokenizer where separable.
    joules_per_token: energy of the report's `energy_sensors` while tokens were generated, idle
        draw included (tg only); None where no sensor covers it.
    throttled: whether the machine slowed itself down during a round of this test.
    """

    engine: str
    test: str
    tokens_per_second: Spread
    ttft_ms: float
    itl_ms: Latency | None
    bound_share: float | None
    peak_rss_bytes: int
    memory: Memory
    load_ms: float
    load_samples_ms: tuple[float, ...]
    hash_ms: float | None
    tokenizer_ms: float | None
    weight_bytes: int
    bits_per_weight: float
    kl: float | None
    top1: float | None
    perplexity_ratio: float | None
    kv: str
    context: int
    options: str
    engine_version: str
    joules_per_token: float | None = None
    throttled: bool = False


class Report(msgspec.Struct, frozen=True):
    """Everything of one run.

    `throttled` says that a test was hit by throttling: the run is invalid. `sensors` saw all
    rounds, the warm-up too.
    """

    schema_version: int
    edgelm_version: str
    created: str
    command: str
    machine: Machine
    source: str
    source_sha256: str
    parameters: int
    quality_text: str
    quality_tokens: int
    rounds: int
    results: tuple[Result, ...]
    absent: tuple[tuple[str, str], ...]
    throttled: bool = False
    sensors: SensorLog | None = None
    energy_sensors: tuple[str, ...] = ()


def make_report(
    samples: list[Samples],
    absent: list[SkippedEngine],
    *,
    manifest: Manifest,
    source: Source | None = None,
    machine: Machine,
    command: str,
    rounds: int,
    quality_text: str,
    sensors: Sampler | None = None,
) -> Report:
    """Turn samples into statistics; `sensors` have watched them and are closed.

    `manifest` is of the first bundle; without a `source` the report names its.
    """
    tokens = next((s.figures.tokens for s in samples if s.figures), 0)
    results = tuple(_results(samples, manifest, machine, sensors or Sampler([])))
    return Report(
        schema_version=REPORT_VERSION,
        edgelm_version=edgelm.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=machine,
        source=Path(source.checkpoint.name if source else manifest.lineage.source).name,
        source_sha256=source.sha256 if source else manifest.lineage.sha256,
        parameters=(source.checkpoint.spec if source else manifest.spec).parameters,
        quality_text=quality_text,
        quality_tokens=tokens,
        rounds=rounds,
        results=results,
        absent=tuple((peer.name, peer.reason) for peer in absent),
        throttled=any(result.throttled for result in results),
        sensors=sensors.record if sensors else None,
        energy_sensors=sensors.power_sensors(_all_parts(samples)) if sensors else (),
    )


def write_json(report: Report, path: Path) -> None:
    """Write `report.json`."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def _results(
    samples: list[Samples], manifest: Manifest, machine: Machine, sensors: Sampler
) -> list[Result]:
    results = []
    for one in samples:
        spec = one.engine.spec or manifest.spec
        common = _common(one, spec)
        results += [_prefill_result(one, test, common, sensors) for test in one.prefill_ms]
        for test in one.steps_ms:
            gb_s = machine.gpu_gb_s if _device(one) == "gpu" else machine.read_gb_s
            bound_ms = _bytes_read(one, test, spec) / gb_s / 1e6 if gb_s else None
            results.append(_decode_result(one, test, common, bound_ms, sensors))
    return results


def _prefill_result(one: Samples, test: Test, common: dict[str, Any], sensors: Sampler) -> Result:
    times = one.prefill_ms[test]
    return Result(
        **common,
        test=test.name,
        tokens_per_second=Spread.of([1e3 * test.tokens / ms for ms in times]),
        ttft_ms=percentile(times, 50),
        itl_ms=None,
        bound_share=None,
        throttled=_throttled(one, test, sensors),
    )


def _decode_result(
    one: Samples, test: Test, common: dict[str, Any], bound_ms: float | None, sensors: Sampler
) -> Result:
    rounds = one.steps_ms[test]
    steps = [ms for times in rounds for ms in times]
    rates = Spread.of([1e3 * len(times) / sum(times) for times in rounds])
    return Result(
        **common,
        test=test.name,
        tokens_per_second=rates,
        ttft_ms=percentile(one.ttft_ms[test], 50),
        itl_ms=Latency(*(percentile(steps, share) for share in (50, 90, 99))),
        bound_share=None if bound_ms is None else bound_ms * rates.median / 1e3,
        joules_per_token=_joules_per_token(one, test, sensors),
        throttled=_throttled(one, test, sensors),
    )


def _throttled(one: Samples, test: Test, sensors: Sampler) -> bool:
    return any(sensors.throttled_between(*window) for window in one.windows.get(test, []))


def _joules_per_token(one: Samples, test: Test, sensors: Sampler) -> float | None:
    """Energy of the steps alone: they come last in a window, after the cache was filled."""
    rounds = one.steps_ms[test]
    joules = [
        sensors.energy_between(end - sum(steps) / 1e3, end, _PARTS[_device(one)])
        for (_, end), steps in zip(one.windows.get(test, []), rounds, strict=False)
    ]
    known = [energy for energy in joules if energy is not None]
    if len(known) < len(rounds):
        return None
    return sum(known) / sum(len(steps) for steps in rounds)


def _device(one: Samples) -> str:
    """`cpu` or `gpu`: where an engine computes."""
    device: str = one.loaded.get("device", "cpu")
    return device


def _all_parts(samples: list[Samples]) -> set[Part]:
    return {part for one in samples for part in _PARTS[_device(one)]}


def _bytes_read(one: Samples, test: Test, spec: DecoderSpec) -> float:
    """Bytes that one decode step must read: all weights but the input embedding, and the cache."""
    loaded = one.loaded
    weights = loaded["weight_bytes"]
    if not spec.tie_word_embeddings:
        weights *= 1 - spec.embedding_parameters / spec.parameters
    depth = test.depth + test.tokens / 2
    return float(weights + loaded["kv_bytes"] / loaded["context"] * depth)


def _common(one: Samples, spec: DecoderSpec) -> dict[str, Any]:
    loaded, figures = one.loaded, one.figures
    return {
        "engine": one.engine.name,
        "peak_rss_bytes": one.memory["peak_rss_bytes"],
        "memory": Memory(
            base=loaded["rss_before"],
            loaded=loaded["rss_after"],
            peak=one.memory["peak_rss_bytes"],
            kv=loaded["kv_bytes"],
            gpu=one.memory.get("gpu_bytes"),
        ),
        "load_ms": percentile(one.load_ms, 50),
        "load_samples_ms": tuple(one.load_ms),
        "hash_ms": loaded.get("hash_ms"),
        "tokenizer_ms": loaded.get("tokenizer_ms"),
        "weight_bytes": loaded["weight_bytes"],
        "bits_per_weight": 8 * loaded["weight_bytes"] / spec.parameters,
        "kl": figures.kl if figures else None,
        "top1": figures.top1 if figures else None,
        "perplexity_ratio": figures.perplexity_ratio if figures else None,
        "kv": loaded["kv"],
        "context": loaded["context"],
        "options": loaded["options"],
        "engine_version": loaded["version"],
    }
