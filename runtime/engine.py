"""Which session runs a bundle."""

from importlib import metadata
from pathlib import Path

from edgelm.bundle import CompiledEngine, Manifest
from edgelm.devices.trust import is_trusted
from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.session import Session

_CPU, _CUDA = "onnxruntime", "onnxruntime-cuda"


def open_session(
    folder: Path, manifest: Manifest, *, capacity: int, threads: int | None = None
) -> Session:
    """Open a bundle on the engine that it is for.

    Engines are imported here and not before, so that everything else works, and says what is
    wrong, without one.

    Raises:
        MissingPackage: the engine is not installed, or there is no GPU.
        BadBundle: an engine that this machine does not trust, or that does not run here.
        BadInput: `threads` for an engine that has none.
    """
    name = manifest.engine.name
    if name == _CPU:
        from edgelm.runtime.ort import OrtSession

        return OrtSession(folder, manifest, capacity=capacity, threads=threads)
    if threads is not None:
        raise BadInput(f"threads is {threads}, but {name} runs on the GPU; leave it out")
    if name == _CUDA:
        from edgelm.runtime.ort_cuda import OrtCudaSession

        return OrtCudaSession(folder, manifest, capacity=capacity)
    if not manifest.compiles:
        raise BadBundle(
            f"{folder} is for the engine {name!r}, which this edgelm does not know; upgrade it "
            "(pip install -U edgelm)"
        )
    engine = trusted_engine(folder, manifest)
    from edgelm.runtime.tensorrt import TrtSession

    return TrtSession(folder, manifest, engine, capacity=capacity)


def engine_version(manifest: Manifest) -> str:
    """The version of what runs a bundle: the one that compiled its engine, or the installed one."""
    if manifest.compiles:
        return manifest.engines[0].version if manifest.engines else "not compiled"
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def trusted_engine(folder: Path, manifest: Manifest) -> CompiledEngine:
    """The bundle's newest engine, if this machine compiled it or was told to trust it.

    Raises:
        BadBundle: there is none, or nobody here vouches for it.
    """
    if manifest.pending:
        raise BadBundle(
            f"the engine of {folder} is not compiled yet; compile it: edge-export --finalize "
            f"{folder}"
        )
    engine = manifest.engines[0]
    entry = manifest.files.get(engine.file)
    if entry is None or not is_trusted(entry.sha256):
        raise BadBundle(
            f"{folder / engine.file} was compiled elsewhere ({engine.machine}), and an engine is "
            f"native code that runs with your rights; compile it here: edge-export --finalize "
            f"{folder}, or, if you trust where it is from: edge-export --trust {folder}"
        )
    return engine
