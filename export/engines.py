"""Engines of a target: which one, and compiling it where no GPU is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.bundle import CompiledEngine, EngineNeed, Manifest, graph_sha256
from edgelm.devices.profile import Profile
from edgelm.devices.tensorrt.build import Job, compile_engine
from edgelm.devices.tensorrt.versions import RTX, TENSORRT, engine_family, version_number
from edgelm.devices.trust import trust
from edgelm.errors import BadInput
from edgelm.hashing import file_sha256

FOLDER = "engines"
_MACHINE = "ahead of time, without a GPU"


def engine_need(profile: Profile, name: str | None, sms: Sequence[int]) -> EngineNeed:
    """What a bundle for a device will say it needs.

    Raises:
        BadInput: `sms` for an engine that is not compiled ahead of time.
    """
    engine = profile.engine(name)
    family = engine_family(engine.name) if engine.name.startswith("tensorrt") else engine.name
    if sms and family != RTX:
        raise BadInput(
            f"{engine.name} is compiled on the device itself, for its own GPU; --sm goes with "
            f"{RTX}, which compiles ahead of time"
        )
    own = (profile.sm,) if profile.sm else ()
    return EngineNeed(family, engine.version, tuple(sorted(set(sms))) or own)


def opset_for(need: EngineNeed) -> int | None:
    """The newest opset that an engine reads, where it does not read its dialect's own."""
    old = need.name == TENSORRT and version_number(need.version) < (10, 0)
    return 17 if old else None


def compile_ahead(
    folder: Path, manifest: Manifest, need: EngineNeed, progress: Callable[[str], None]
) -> CompiledEngine:
    """Compile a bundle's graph with TensorRT-RTX for GPUs that need not be here.

    One profile, of 1 to `prefill_chunk` tokens: TensorRT-RTX specializes kernels for the shapes it
    meets at run time, and a second profile would store half of the weights twice.
    """
    built = compile_engine(
        Job(
            folder / manifest.graph.file,
            manifest.graph,
            RTX,
            manifest.limits.prefill_chunk,
            sms=need.sms,
            profiles=1,
        ),
        progress,
    )
    name = f"{'-'.join(f'sm{sm}' for sm in need.sms)}-rtx{built.version}"
    path = folder / FOLDER / f"{name}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(built.content)
    trust(file_sha256(path))
    progress(f"compiled {path.name}: {path.stat().st_size / 1e6:,.1f} MB in {built.seconds:.1f} s")
    return CompiledEngine(
        file=f"{FOLDER}/{path.name}",
        name=RTX,
        version=built.version,
        sms=need.sms,
        graph_sha256=graph_sha256(folder, manifest.graph),
        profiles=1,
        build_seconds=round(built.seconds, 2),
        machine=_MACHINE,
        runtime_cache=f"{FOLDER}/{name}.cache",
    )
