"""Make a report of what was measured, and write it."""

from datetime import datetime, timezone
from pathlib import Path

import msgspec

import edgelm
from edgelm.bench.machine import Machine
from edgelm.bench.measure import Samples
from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.peers.sources import Source
from edgelm.bench.report.expectation import expectation
from edgelm.bench.report.records import REPORT_VERSION, Report
from edgelm.bench.report.results import all_parts, make_results
from edgelm.bench.report.selection import OWN
from edgelm.bundle import Manifest
from edgelm.devices.sensors import Sampler


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
    results = tuple(make_results(samples, manifest, machine, sensors or Sampler([])))
    # Of several bundles nothing says which one failed.
    measured = not any(peer.name.startswith(OWN) for peer in absent)
    return Report(
        schema_version=REPORT_VERSION,
        edgelm_version=edgelm.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
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
        energy_sensors=sensors.power_sensors(all_parts(samples)) if sensors else (),
        target=manifest.target,
        gate=manifest.gate if measured else None,
        expected=expectation(manifest, results) if measured else None,
    )


def write_json(report: Report, path: Path) -> None:
    """Write `report.json`."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
