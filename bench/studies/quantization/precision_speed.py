"""The speed of each precision on this machine: one bundle each, in interleaved rounds."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

from edgelm.bench.measure import measure
from edgelm.bench.peers.engines import bundle_engines
from edgelm.bench.workload import context_needed, workload
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int4, Int8, describe

log = logging.getLogger(__name__)


class Speed(msgspec.Struct, frozen=True):
    """Medians: of a prompt, and of tokens after a prompt of the same length."""

    prompt_tokens_per_second: float
    tokens_per_second: float


def precision_speeds(
    source: str | Path,
    precisions: Sequence[Int4 | Int8],
    *,
    rounds: int,
    threads: int,
    prompt: int = 512,
    generate: int = 32,
) -> dict[str, Speed]:
    """Prefill and decode with all matrices at one precision, by its short name.

    Speed does not depend on how levels are chosen, so round-to-nearest is used.
    """
    tests = workload([prompt], [generate], [prompt])
    context = context_needed(tests)
    with TemporaryDirectory(prefix="edgelm-speed-") as folder:
        names = {Path(folder) / str(n): describe(one) for n, one in enumerate(precisions)}
        manifests = {}
        for path, precision in zip(names, precisions, strict=True):
            log.info("exporting %s", describe(precision))
            manifests[path] = export_model(
                source,
                path,
                precision="int4" if isinstance(precision, Int4) else "int8",
                group_size=precision.group_size,
                symmetric=precision.symmetric,
                method="rtn",
                gate="off",
                context=context,
                work=Path(folder) / "work",  # the source is run once
            )
        engines = [
            replace(engine, name=names[path])
            for engine, path in zip(bundle_engines(manifests), manifests, strict=True)
        ]
        samples, failed = measure(
            engines, tests, rounds=rounds, context=context, threads=threads, quality=None
        )
    for one in failed:
        log.warning("%s: %s", one.name, one.reason)
    prefill, decode = tests
    return {
        one.engine.name: Speed(
            1000 * prompt / median(one.prefill_ms[prefill]),
            1000 / median([ms for steps in one.steps_ms[decode] for ms in steps]),
        )
        for one in samples
    }
