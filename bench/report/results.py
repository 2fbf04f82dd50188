"""From raw samples to one result for each engine and test."""

from typing import Any

from edgelm.bench.machine import Machine
from edgelm.bench.measure import Samples
from edgelm.bench.report.records import Latency, Memory, Result
from edgelm.bench.report.statistics import Percentiles, percentile
from edgelm.bench.workload import Test
from edgelm.bundle import Manifest
from edgelm.devices.sensors import Part, Sampler
from edgelm.spec.decoder import DecoderSpec

# Where an engine computes on the processor, the GPU idles, and its power is not theirs.
_PARTS: dict[str, tuple[Part, ...]] = {"cpu": ("cpu",), "gpu": ("cpu", "gpu")}


def make_results(
    samples: list[Samples], manifest: Manifest, machine: Machine, sensors: Sampler
) -> list[Result]:
    """One result for each engine and test.

    `manifest` is of the first bundle; `sensors` have watched the samples and are closed.
    """
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
        tokens_per_second=Percentiles.from_samples([1e3 * test.tokens / ms for ms in times]),
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
    rates = Percentiles.from_samples([1e3 * len(times) / sum(times) for times in rounds])
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


def all_parts(samples: list[Samples]) -> set[Part]:
    """The parts of the machine on which the engines computed."""
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
        "device": _device(one),
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
