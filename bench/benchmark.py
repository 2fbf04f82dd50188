"""One benchmark: from bundles and options to the three files of a report."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.bench.machine import describe_machine
from edgelm.bench.measure import measure
from edgelm.bench.peers.engines import STATIC_CACHE, bundle_engines, peer_engines
from edgelm.bench.peers.sources import Source, Sources, find_source
from edgelm.bench.report.page.html import html
from edgelm.bench.report.page.markdown import markdown, table
from edgelm.bench.report.page.notes import why_invalid
from edgelm.bench.report.records import Report
from edgelm.bench.report.report import make_report, write_json
from edgelm.bench.workload import Test, context_needed
from edgelm.bundle import Manifest, read_manifest
from edgelm.devices.detection.threads import physical_cores
from edgelm.devices.sensors import open_sensors
from edgelm.errors import BadInput, MissingPackage
from edgelm.files.staging import check_output_folder

if TYPE_CHECKING:
    from edgelm.bench.quality import Quality  # imports torch


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What to measure and where to write the report.

    source: the model to compare with, where the manifests do not name it.
    quality: whether logits are compared with the source's.
    quality_text: the text for that; None is the gate's own.
    threads: None is one for each physical core.
    cache: the folder for peers' model files.
    command: the command line, for the report.
    """

    bundles: tuple[Path, ...]
    tests: tuple[Test, ...]
    rounds: int
    peers: tuple[str, ...]
    source: str | None
    quality: bool
    quality_text: Path | None
    threads: int | None
    cache: Path
    out: Path
    command: str


def run_benchmark(job: Benchmark) -> None:
    """Measure, write `report.json`, `report.md` and `report.html`, print the table.

    Raises:
        BadInput: an option or a bundle cannot be used, or no engine could be measured.
        MissingPackage: quality was requested and torch is not installed.
    """
    _check_paths(job)
    manifests = {folder: read_manifest(folder) for folder in job.bundles}
    _check_generate(manifests)
    _check_context(manifests, job.tests)
    report = _measured(job, manifests)
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(report, job.out / "report.json")
    (job.out / "report.md").write_text(markdown(report), encoding="utf-8")
    (job.out / "report.html").write_text(html(report), encoding="utf-8")
    print("\n".join(table(report)))
    for name, reason in report.absent:
        print(f"not measured: {name}: {reason}")
    print(f"report: {job.out / 'report.html'}")
    if report.throttled:
        print(f"warning: {why_invalid(report)}", file=sys.stderr)


def _check_generate(manifests: Mapping[Path, Manifest]) -> None:
    """Raise BadInput for embedding models, which decode nothing."""
    for folder, manifest in manifests.items():
        if manifest.embedding is not None:
            raise BadInput(
                f"{folder} is an embedding model, and edge-bench measures prompts and answers; "
                "edge-run BUNDLE --json TEXT prints how long a text takes"
            )


def _measured(job: Benchmark, manifests: dict[Path, Manifest]) -> Report:
    with_quality = job.quality and _torch_for_quality(job)
    source = None
    if job.peers or with_quality:
        source = find_source(list(manifests.values()), job.source)
    quality = _quality(job, source) if with_quality and source else None
    sources = Sources(source, job.cache) if source else None
    peers, skipped = peer_engines(list(job.peers), sources)
    threads = job.threads or physical_cores()
    on_gpu = any(manifest.engine.name != "onnxruntime" for manifest in manifests.values())
    machine = describe_machine(threads, gpu=on_gpu or STATIC_CACHE in job.peers)
    sensors = open_sensors()
    samples, failed = measure(
        [*bundle_engines(manifests), *peers],
        list(job.tests),
        rounds=job.rounds,
        context=context_needed(list(job.tests)),
        threads=threads,
        quality=quality,
        sensors=sensors,
    )
    skipped += failed
    if not samples:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped)
        raise BadInput(f"nothing could be measured: {reasons}")
    return make_report(
        samples,
        skipped,
        manifest=manifests[job.bundles[0]],
        source=source,
        machine=machine,
        command=job.command,
        rounds=job.rounds,
        quality_text=job.quality_text.name if job.quality_text else "gate.jsonl",
        sensors=sensors,
    )


def _quality(job: Benchmark, source: Source) -> "Quality":
    from edgelm.bench.quality import Quality
    from edgelm.export.source.text import GATE

    tokenizer = job.bundles[0] / "tokenizer.json"
    text = job.quality_text or GATE
    return Quality(source.checkpoint, tokenizer, text, context_needed(list(job.tests)))


def _torch_for_quality(job: Benchmark) -> bool:
    """Whether quality can be measured here; a device that only runs bundles has no torch."""
    if find_spec("torch") and find_spec("transformers"):
        return True
    needs = "comparing logits with the source model needs torch and transformers"
    if job.source or job.quality_text or job.peers:
        raise MissingPackage(f"{needs}: pip install 'edgelm[bench]', or add --no-quality")
    print(f"quality is not measured: {needs}, which are not installed", file=sys.stderr)
    return False


def _check_paths(job: Benchmark) -> None:
    """Before minutes of measuring: whether the report can be written, whether the text exists."""
    check_output_folder(job.out, "--out")
    if job.quality_text and not job.quality_text.is_file():
        raise BadInput(f"no such text file: {job.quality_text}")


def _check_context(manifests: dict[Path, Manifest], tests: tuple[Test, ...]) -> None:
    context = context_needed(list(tests))
    for folder, manifest in manifests.items():
        if context > manifest.limits.context:
            raise BadInput(
                f"these tests need a context of {context}, {folder} has "
                f"{manifest.limits.context}; use a smaller depth or export with a larger --context"
            )
