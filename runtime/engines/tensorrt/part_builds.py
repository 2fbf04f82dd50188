"""Compile all parts of a bundle's graph, one after the other, into the bundle.

Memory is taken for one part at a time, and each engine is on the disk before the next part begins:
a build that is interrupted, or killed for its memory, resumes with the first missing one.
"""

from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from edgelm.bundle import CompiledEngine, EngineFile, GraphContract, GraphSegment, graph_sha256
from edgelm.devices.tensorrt_versions import PROFILES
from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines.tensorrt.build import Built, Job
from edgelm.runtime.engines.tensorrt.engine_file import PartKey, find_part, save_part

Progress = Callable[[str], None]
Compile = Callable[[Job, Progress], Built]


class BuildPlan(NamedTuple):
    """What a bundle's graph is compiled with, and for.

    `ahead`: without the GPU. `machine` and `power_mode` say where, for the record.
    """

    graph: GraphContract
    family: str
    version: str
    prefill_chunk: int
    context: int
    compute_capabilities: tuple[int, ...]
    machine: str
    power_mode: str = ""
    timing_cache: Path | None = None
    ahead: bool = False


def part_keys(folder: Path, plan: BuildPlan) -> list[PartKey]:
    """What identifies the engine of each part."""
    graph, profiles = plan.graph, PROFILES[plan.family]
    weights = file_sha256(folder / graph.data)
    keys = []
    for number, part in enumerate(graph.parts, start=1):
        inputs = (
            file_sha256(folder / part.file),
            weights,
            plan.prefill_chunk,
            plan.context,
            profiles,
        )
        digest = sha256(repr(inputs).encode()).hexdigest()
        keys.append(
            PartKey(
                plan.family,
                plan.version,
                plan.compute_capabilities,
                number,
                len(graph.parts),
                digest,
            )
        )
    return keys


def build_parts(
    folder: Path,
    plan: BuildPlan,
    compile_part: Compile,
    progress: Progress,
    *,
    exclude: Collection[str] = (),
    on_saved: Callable[[str], None] = lambda _: None,
) -> CompiledEngine:
    """Compile a graph's parts into a bundle; parts that an interrupted build left are taken.

    `exclude`: files of engines that are to be compiled again. `on_saved` is called with every file
    that is compiled, once it is on the disk.

    Raises:
        MissingPackage, BadBundle, DoesNotFit, UnknownName: as `compile_engine`.
    """
    keys = part_keys(folder, plan)
    files, seconds = list[EngineFile](), 0.0
    for key, part in zip(keys, plan.graph.parts, strict=True):
        say = _numbered(key, progress)
        found = find_part(folder, key, exclude=tuple(exclude))
        if found is not None:
            say(f"taken from an interrupted build: {found.file}")
        else:
            built = compile_part(_job(folder, plan, part), say)
            found = save_part(folder, key, built)
            on_saved(found.file)
            seconds += built.seconds
            del built  # an engine is as large as its weights
        files.append(found)
    return _record(folder, plan, files, seconds)


def _numbered(key: PartKey, progress: Progress) -> Progress:
    """Progress that says which segment it is of."""
    if key.parts == 1:
        return progress
    return lambda line: progress(f"segment {key.number} of {key.parts}: {line}")


def _job(folder: Path, plan: BuildPlan, part: GraphSegment) -> Job:
    return Job(
        folder / part.file,
        plan.graph,
        plan.family,
        plan.prefill_chunk,
        plan.context,
        compute_capabilities=plan.compute_capabilities if plan.ahead else (),
        timing_cache=plan.timing_cache,
        part=part,
    )


def _record(
    folder: Path, plan: BuildPlan, files: Sequence[EngineFile], seconds: float
) -> CompiledEngine:
    first, *later = files
    return CompiledEngine(
        file=first.file,
        name=plan.family,
        version=plan.version,
        compute_capabilities=plan.compute_capabilities,
        graph_sha256=graph_sha256(folder, plan.graph),
        profiles=PROFILES[plan.family],
        build_seconds=round(seconds, 2),
        machine=plan.machine,
        power_mode=plan.power_mode,
        runtime_cache=first.runtime_cache,
        later_segments=tuple(later),
    )
