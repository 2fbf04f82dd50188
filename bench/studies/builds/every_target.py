r"""One model exported for many devices: the result of `edge-export` for each.

    python -m bench.studies.builds.every_target MODEL -o targets/
    python -m bench.studies.builds.every_target MODEL -o targets/ \
        --targets jetson-orin,rtx-4060-laptop

Runs the command as a user would, one target after the other, and stores figures of the manifests in
`targets.json`; bundles are removed. An interrupted run resumes. Seconds depend on the order: the
first target of a kind takes as long as a single export, the others reuse its calibration and
quantization from `work/`, which remains.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import torch

from edgelm.bench.machine import describe_machine
from edgelm.bundle import Manifest, read_manifest
from edgelm.bundle.manifest import CompiledEngine
from edgelm.cli import run_command
from edgelm.devices.profile import load_profiles
from edgelm.files.staging import replace_file
from edgelm.quantize.precision import describe


class Exported(msgspec.Struct, frozen=True):
    """The result of one command; `error` is the last line of its output if it failed."""

    model: str
    target: str
    engine: str
    precision: str
    exit_code: int
    seconds: float
    error: str = ""
    dialect: str = ""
    kv: str = ""
    mixture: str = ""
    weight_bytes: int = 0
    pending: bool = False
    compute_capabilities: tuple[int, ...] = ()
    engine_bytes: int = 0
    engine_seconds: float = 0.0
    kl: float | None = None
    top1: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The request."""
        return self.model, self.target, self.engine, self.precision


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m bench.studies.builds.every_target`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", help="Hugging Face folder, hub id, or .gguf file")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the table")
    add("--targets", metavar="A,B", help="default: every Jetson, laptop and desktop")
    add("--engine", default="", help="one of the targets' engines (default: each one's first)")
    add("--precision", default="auto", help="(default: auto)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "targets.json"
    found = msgspec.json.decode(path.read_bytes(), type=list[Exported]) if path.exists() else []
    names = arguments.targets.split(",") if arguments.targets else devices()
    for name in names:
        request = (arguments.model, name, arguments.engine, arguments.precision)
        if any(one.key == request for one in found):
            continue
        one = export_once(arguments.model, name, arguments.engine, arguments.precision, out)
        found.append(one)
        replace_file(path, msgspec.json.format(msgspec.json.encode(found)))
        print(f"{name}: exit {one.exit_code}, {one.seconds:.0f} s", file=sys.stderr, flush=True)
    print(describe_machine(torch.get_num_threads()))
    print(table(found))


def devices() -> list[str]:
    """All profiles except those of this machine and of data centers."""
    return [
        one.name
        for one in load_profiles()
        if one.memory.kind != "host" and one.form != "datacenter"
    ]


def export_once(model: str, target: str, engine: str, precision: str, out: Path) -> Exported:
    """Run the command for one target and read the manifest of the bundle."""
    bundle = out / target
    command = [sys.executable, "-m", "edgelm.export.cli", model, "--target", target]
    command += ["--precision", precision, "--work", str(out / "work"), "-o", str(bundle)]
    if engine:
        command += ["--engine", engine]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - start, 1)
    exported = Exported(model, target, engine, precision, done.returncode, seconds)
    if done.returncode:
        return msgspec.structs.replace(exported, error=_last_line(done.stderr))
    found = _described(exported, read_manifest(bundle))
    shutil.rmtree(bundle)
    return found


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no output"


def _compiled_for_target(manifest: Manifest) -> CompiledEngine | None:
    """The compiled engine of the bundle's own target, among those for other machines."""
    needed = manifest.engine
    for engine in manifest.engines:
        same = set(engine.compute_capabilities) & set(needed.compute_capabilities)
        if engine.name == needed.name and (same or not needed.compute_capabilities):
            return engine
    return None


def _described(exported: Exported, manifest: Manifest) -> Exported:
    mixture = Counter(describe(one) for one in manifest.precision.values())
    compiled = _compiled_for_target(manifest)
    return msgspec.structs.replace(
        exported,
        dialect=manifest.graph.dialect,
        kv=manifest.kv,
        mixture=", ".join(f"{count} × {name}" for name, count in sorted(mixture.items())),
        weight_bytes=manifest.weight_bytes,
        pending=manifest.pending,
        compute_capabilities=compiled.compute_capabilities
        if compiled
        else manifest.engine.compute_capabilities,
        engine_bytes=manifest.files[compiled.file].bytes if compiled else 0,
        engine_seconds=compiled.build_seconds if compiled else 0.0,
        kl=manifest.gate.figures.kl if manifest.gate else None,
        top1=manifest.gate.figures.top1 if manifest.gate else None,
    )


def table(found: list[Exported]) -> str:
    """Targets with the same result share a row."""
    rows: dict[tuple[str, ...], list[Exported]] = {}
    for one in found:
        rows.setdefault(_cells(one), []).append(one)
    lines = [
        "| targets | precision | dialect | SM | weights | cache | engine | KL | top-1 | exit | s |",
        "|---|---|---|---|---:|---|---|---:|---:|---:|---:|",
    ]
    for cells, ones in rows.items():
        names = ", ".join(one.target + (f" ({one.engine})" if one.engine else "") for one in ones)
        seconds = sorted(one.seconds for one in ones)
        took = f"{seconds[0]:.0f}" + (f" to {seconds[-1]:.0f}" if len(ones) > 1 else "")
        lines.append(f"| {names} | {' | '.join(cells)} | {took} |")
    return "\n".join(lines)


def _cells(one: Exported) -> tuple[str, ...]:
    engine = "pending" if one.pending else f"{one.engine_bytes / 1e6:.1f} MB"
    if one.exit_code:
        engine = one.error[:120]
    precision = f"{one.precision}: {one.mixture}" if one.precision == "auto" else one.precision
    return (
        precision,
        one.dialect,
        ", ".join(map(str, one.compute_capabilities)),
        f"{one.weight_bytes / 1e6:.1f} MB",
        one.kv,
        engine,
        "" if one.kl is None else f"{one.kl:.4f}",
        "" if one.top1 is None else f"{one.top1:.1%}",
        str(one.exit_code),
    )


if __name__ == "__main__":
    raise SystemExit(main())
