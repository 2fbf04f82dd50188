"""Compile a bundle's engine on the device that it is for, check it, and record it in the manifest.

A TensorRT engine runs on the GPU and the version that compiled it. A kill at any moment leaves the
bundle pending or finished: the engine is moved into place atomically, and the manifest after it.
"""

import errno
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgelm.bundle import (
    MANIFEST,
    CompiledEngine,
    FileEntry,
    Manifest,
    encode_manifest,
    read_manifest,
    verify,
)
from edgelm.bundle.file_names import ENGINES
from edgelm.bundle.files import engine_files
from edgelm.bundle.records.gate_sample import measure_sample, read_sample
from edgelm.bundle.records.gates import Figures, GateResult, passes
from edgelm.cli import format_bytes
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.swap import read_swaps
from edgelm.devices.planner.memory.build_room import room_here
from edgelm.devices.tensorrt_versions import load_module
from edgelm.errors import BadBundle, BadInput, DoesNotFit, EdgeLMError, GateFailed
from edgelm.files.hashing import file_sha256
from edgelm.files.staging import exclusive_lock, remove_abandoned_files, replace_file
from edgelm.files.user_folders import cache_folder
from edgelm.runtime.engines.cuda import Gpu, find_gpu
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.open import has_engine_here
from edgelm.runtime.engines.tensorrt.build import check_dialect, compile_engine
from edgelm.runtime.engines.tensorrt.build_preflight import check_build_memory, segment_weights
from edgelm.runtime.engines.tensorrt.engine_file import ENGINE_NAME, PartKey
from edgelm.runtime.engines.tensorrt.part_builds import BuildPlan, build_parts, part_keys

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


def finalize(folder: Path, *, force: bool = True, progress: Progress = log.info) -> Manifest:
    """Compile the engine of a pending bundle, or compile it again.

    One process at a time does; others wait. `force=False` takes an engine that is there by then.

    Raises:
        BadInput: the bundle runs without a compiled engine.
        MissingPackage: no TensorRT, or no GPU.
        BadBundle: the bundle is damaged, or for another GPU or another TensorRT.
        DoesNotFit: not enough memory to compile, or a full disk.
        GateFailed: the engine computes something else than the graph; it is discarded.
    """
    with _system_errors(folder):
        return _finalize(folder, force, progress)


def _finalize(folder: Path, force: bool, progress: Progress) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.compiles:
        raise BadInput(
            f"{folder} runs on {manifest.engine.name}, which needs no compiled engine: there is "
            "nothing to finalize; run it with edge-run"
        )
    _check_writable(folder)
    with exclusive_lock(
        folder, lambda: progress("another process is compiling this bundle: waiting for it")
    ) as alone:
        manifest = read_manifest(folder)
        _check_engines_folder(folder)
        if manifest.engines and not force and has_engine_here(manifest):
            return manifest
        return _compile(folder, manifest, progress, alone=alone)


@contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """Errors of the operating system, as errors of ours that name the file."""
    try:
        yield
    except OSError as error:
        file = error.filename2 or error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DoesNotFit(
                f"the disk is full: {file} cannot be written; free some space and run edge-export "
                f"--finalize {folder} again"
            ) from None
        raise BadInput(
            f"{file}: {error.strerror or error}; compiling {folder} needs to read and write it: "
            "change its permissions and run edge-export --finalize again"
        ) from None


def _check_engines_folder(folder: Path) -> None:
    """Raise BadBundle where engines would be written to, or removed from, another folder."""
    engines = folder / ENGINES
    if not os.path.lexists(engines):
        return
    if not stat.S_ISDIR(engines.lstat().st_mode):
        raise BadBundle(
            f"{engines} is a link or a file, expected a folder; remove it and run "
            f"edge-export --finalize {folder} again"
        )


def _remove_unlisted(folder: Path, manifest: Manifest, keys: Sequence[PartKey]) -> None:
    """Remove engines that killed processes left, but those of this build; others are not ours."""
    remove_abandoned_files(folder)
    if not (engines := folder / ENGINES).is_dir():
        return
    remove_abandoned_files(engines)
    named = engine_files(manifest)
    for path in engines.iterdir():
        if f"{ENGINES}/{path.name}" in named or not ENGINE_NAME.fullmatch(path.name):
            continue
        if not any(path.name.startswith(f"{key.stem}-") for key in keys):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove an engine, or a link in its place; one that cannot be removed only takes space."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # also where it is a folder
        log.debug("%s cannot be removed: %s", path, error)


def _compile(folder: Path, manifest: Manifest, progress: Progress, *, alone: bool) -> Manifest:
    """Compile, check and record; `alone`: no other process can be compiling this bundle."""
    _verify_graph(folder, manifest)
    family = manifest.engine.name
    version = str(load_module(family).__version__)
    check_dialect(family, version, manifest.graph)
    gpu = find_gpu()
    _check_gpu(manifest, gpu)
    machine = detect()
    room = room_here(machine.available_bytes, read_swaps())
    check_build_memory(family, segment_weights(manifest), room, progress)
    jetson = machine.jetson
    plan = BuildPlan(
        manifest.graph,
        family,
        version,
        manifest.limits.prefill_chunk,
        manifest.limits.context,
        (gpu.sm,),
        machine=jetson.model if jetson else gpu.name,
        power_mode=(jetson.power_mode or "") if jetson else "",
        timing_cache=_timing_cache(family, version, gpu),
    )
    if alone:
        _remove_unlisted(folder, manifest, part_keys(folder, plan))
    finished = engine_files(manifest)
    engine = build_parts(folder, plan, compile_engine, progress, exclude=finished)
    progress(_summary(engine, folder))
    try:
        engine = _check_quality(folder, manifest, engine, progress)
    except BaseException:
        _remove_new(folder, engine, manifest)
        raise
    return _record(folder, manifest, engine)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise BadInput(
            f"{folder} is read-only, but its engine must be compiled into it; copy it to a "
            "folder of yours, or run edge-export --finalize as its owner"
        )


def _verify_graph(folder: Path, manifest: Manifest) -> None:
    """Check every hash but those of engines: recompiling replaces a damaged one."""
    engines = engine_files(manifest)
    files = {name: entry for name, entry in manifest.files.items() if name not in engines}
    verify(folder, msgspec.structs.replace(manifest, files=files, engines=()))


def _check_gpu(manifest: Manifest, gpu: Gpu) -> None:
    wanted = manifest.engine.compute_capabilities
    if wanted and gpu.sm not in wanted:
        raise BadBundle(
            f"this bundle is for {manifest.target} (sm_{', sm_'.join(map(str, wanted))}), this GPU "
            f"({gpu.name}) is sm_{gpu.sm}; export it for this device: edge-devices detect names "
            "the target"
        )


def _timing_cache(family: str, version: str, gpu: Gpu) -> Path:
    return cache_folder() / f"{family}-{version}-sm{gpu.sm}.timing"


def _check_quality(
    folder: Path, manifest: Manifest, engine: CompiledEngine, progress: Progress
) -> CompiledEngine:
    """The engine with what it measured on the gate's sample."""
    sample = read_sample(folder, manifest)
    if sample is None or manifest.gate is None:
        return engine
    # Imported here: reading, compiling and all their errors work without it.
    from edgelm.runtime.engines.tensorrt.trt_engine import TrtEngine

    loaded = TrtEngine(
        folder,
        manifest.graph,
        engine,
        capacity=manifest.graph.cache.capacity or manifest.limits.context,
        prefill_chunk=manifest.limits.prefill_chunk,
    )
    with EngineSession(loaded) as session:
        figures = measure_sample(sample, session)
    gate = manifest.gate
    _check_finite(figures, gate)
    passed = passes(figures, gate.threshold)
    progress(
        f"gate {gate.gate_class} on the engine: KL {figures.kl:.4f}, top-1 {figures.top1:.1%}: "
        f"{'passed' if passed else 'missed'}"
    )
    if gate.enforced and not passed:
        raise GateFailed(
            f"the engine misses the {gate.gate_class} gate that its graph passed: KL "
            f"{figures.kl:.4f}, the graph had {gate.figures.kl:.4f}; it is discarded. Another "
            f"version of TensorRT than {engine.version} may compile it correctly"
        )
    result = GateResult(
        gate.gate_class,
        figures,
        passed,
        gate.enforced,
        gate.text,
        gate.text_sha256,
        limits=gate.limits,
    )
    return msgspec.structs.replace(engine, gate=result)


def _check_finite(figures: Figures, gate: GateResult) -> None:
    if not all(math.isfinite(one) for one in (figures.kl, figures.top1, figures.perplexity)):
        raise GateFailed(
            f"the engine misses the {gate.gate_class} gate that its graph passed: its logits are "
            "not numbers (NaN or infinity); it is discarded. Use another version of TensorRT, or "
            "export with --precision bf16"
        )


def _record(folder: Path, manifest: Manifest, engine: CompiledEngine) -> Manifest:
    """Write the manifest with the engine in place of an older one for the same GPUs."""
    same = {
        one.file
        for one in manifest.engines
        if (one.name, one.compute_capabilities) == (engine.name, engine.compute_capabilities)
    }
    others = tuple(one for one in manifest.engines if one.file not in same)
    replaced = {file for one in manifest.engines if one.file in same for file in one.files}
    files = {name: entry for name, entry in manifest.files.items() if name not in replaced}
    for name in engine.files:
        path = folder / name
        files[name] = FileEntry(path.stat().st_size, file_sha256(path))
    finished = msgspec.structs.replace(manifest, engines=(engine, *others), files=files)
    try:
        replace_file(folder / MANIFEST, encode_manifest(finished))
    except (OSError, EdgeLMError):  # the manifest is the old one
        _remove_new(folder, engine, manifest)
        raise
    for name in replaced - set(engine.files):
        _remove(folder / name)
    return finished


def _remove_new(folder: Path, engine: CompiledEngine, manifest: Manifest) -> None:
    """Remove an engine that is not recorded, but for files that the manifest names."""
    for name in engine.files:
        if name not in manifest.files:
            _remove(folder / name)


def _summary(engine: CompiledEngine, folder: Path) -> str:
    size = format_bytes(sum((folder / name).stat().st_size for name in engine.files))
    name, _, _ = engine.file.rpartition("-")
    mode = f", {engine.power_mode}" if engine.power_mode else ""
    parts = f" in {len(engine.files)} segments" if engine.later_segments else ""
    return (
        f"compiled {name}{parts}: {size} in {engine.build_seconds:.0f} s on {engine.machine}{mode}"
    )
