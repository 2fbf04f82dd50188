"""Compile a bundle's engine where no GPU is needed."""

from collections.abc import Callable
from pathlib import Path

from edgelm.bundle import CompiledEngine, Manifest
from edgelm.cli import format_bytes
from edgelm.devices.tensorrt_versions import RTX, load_module
from edgelm.files.staging import replace_file
from edgelm.runtime.engines.tensorrt.build import compile_engine
from edgelm.runtime.engines.tensorrt.engine_file import find_part
from edgelm.runtime.engines.tensorrt.part_builds import (
    BuildPlan,
    Progress,
    build_parts,
    part_keys,
)

_MACHINE = "ahead of time, without a GPU"


def compile_ahead(
    folder: Path,
    manifest: Manifest,
    progress: Callable[[str], None],
    *,
    work: Path | None = None,
) -> tuple[CompiledEngine, ...]:
    """Compile a bundle's graph with TensorRT-RTX, if that is its engine; its GPU may be absent.

    `work`: a folder where compiled segments stay, so that an interrupted export resumes.
    """
    if manifest.engine.name != RTX:
        return ()
    plan = BuildPlan(
        manifest.graph,
        RTX,
        str(load_module(RTX).__version__),
        manifest.limits.prefill_chunk,
        manifest.limits.context,
        manifest.engine.compute_capabilities,
        machine=_MACHINE,
        ahead=True,
    )
    if work is None or not manifest.graph.segments:
        engine = build_parts(folder, plan, compile_engine, progress)
    else:
        engine = _build_resumably(folder, plan, progress, work)
    size = format_bytes(sum((folder / file).stat().st_size for file in engine.files))
    progress(f"compiled {engine.file}: {size} in {engine.build_seconds:.1f} s")
    return (engine,)


def _build_resumably(
    folder: Path, plan: BuildPlan, progress: Progress, work: Path
) -> CompiledEngine:
    """Take what an earlier export compiled, and leave copies of what is compiled now."""

    def store(file: str) -> None:
        replace_file(work / file, (folder / file).read_bytes())

    for key in part_keys(folder, plan):
        stored = find_part(work, key)
        if stored is not None:
            replace_file(folder / stored.file, (work / stored.file).read_bytes())
    return build_parts(folder, plan, compile_engine, progress, on_saved=store)
