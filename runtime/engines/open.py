"""Which session runs a bundle."""

import os
import re
from importlib import metadata
from pathlib import Path

from edgelm.bundle import CompiledEngine, Manifest
from edgelm.devices.tensorrt_versions import load_module
from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Engine, Session
from edgelm.runtime.engines.tensorrt.engine_choice import engines_for, why_not
from edgelm.runtime.engines.trust import is_trusted

_CPU, _CUDA = "onnxruntime", "onnxruntime-cuda"
_MAX_THREADS_PER_CORE = 4  # more only wait for each other, and each takes memory


def open_session(
    folder: Path, manifest: Manifest, *, capacity: int, threads: int | None = None
) -> Session:
    """Open a bundle on the engine that it is for.

    Engines are imported here and not before, so that everything else works, errors included,
    without one.

    Raises:
        MissingPackage: the engine is not installed, or there is no GPU.
        BadBundle: an engine that this machine does not trust, or that does not run here.
        BadInput: `threads` for an engine that has none, or more than are useful.
    """
    check_threads(threads)
    return EngineSession(_open_engine(folder, manifest, capacity, threads))


def open_draft(
    folder: Path, draft: Manifest, model: Session, *, capacity: int, threads: int | None = None
) -> Session:
    """Open the draft of a bundle: a model of its own, or what runs over a session of the model.

    Raises:
        MissingPackage, BadBundle, BadInput: as `open_session`.
    """
    if not draft.spec.draft_head and draft.spec.assistant is None:
        return open_session(folder, draft, capacity=capacity, threads=threads)
    from edgelm.runtime.engines.onnxruntime.host.assistant_engine import AssistantEngine
    from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

    engine = model.engine if isinstance(model, EngineSession) else None
    assert isinstance(engine, OrtEngine), "manifests of such drafts are for no other engine"
    if draft.spec.assistant is not None:
        sessions, graph = engine.loaded
        assistant = AssistantEngine.load(
            folder, draft.graph, sessions[0], graph, capacity=capacity, threads=threads
        )
        return EngineSession(assistant)
    head = engine.draft_head(folder, draft.graph, capacity=capacity, threads=threads)
    return EngineSession(head)


def _open_engine(folder: Path, manifest: Manifest, capacity: int, threads: int | None) -> Engine:
    name, graph, chunk = manifest.engine.name, manifest.graph, manifest.limits.prefill_chunk
    if name == _CPU:
        from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

        _check_version(manifest)
        return OrtEngine(folder, graph, capacity=capacity, prefill_chunk=chunk, threads=threads)
    if threads is not None:
        raise BadInput(f"threads is {threads}, but {name} runs on the GPU; omit it")
    if name == _CUDA:
        from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine

        _check_version(manifest)
        return OrtCudaEngine(folder, graph, capacity=capacity, prefill_chunk=chunk)
    if not manifest.compiles:
        raise BadBundle(
            f"{folder} is for the engine {name!r}, which this edgelm does not know; upgrade it"
        )
    compiled = trusted_engine(folder, manifest)
    from edgelm.runtime.engines.tensorrt.trt_engine import TrtEngine

    return TrtEngine(folder, graph, compiled, capacity=capacity, prefill_chunk=chunk)


def check_threads(threads: int | None) -> None:
    """Raise BadInput unless `threads` is None or a useful number of threads."""
    if threads is None:
        return
    limit = _MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise BadInput(f"threads is {threads!r}, expected an integer")
    if threads < 1:
        raise BadInput(f"threads is {threads}, expected at least 1")
    if threads > limit:
        raise BadInput(
            f"threads is {threads}, expected at most {limit} on a machine of "
            f"{os.cpu_count() or 1} cores; leave it out to use the physical cores"
        )


def engine_version(manifest: Manifest) -> str:
    """The version of what runs a bundle here: what compiled its engine, or the installed one."""
    if manifest.compiles:
        return _engines_here(manifest)[0].version if manifest.engines else "not compiled"
    return _installed_onnxruntime() or "unknown"


def trusted_engine(folder: Path, manifest: Manifest) -> CompiledEngine:
    """The bundle's engine for this GPU, if this machine compiled it or its user trusts it.

    This checks the hash that the manifest names; the hash of the file's bytes is checked again
    before the engine runs.

    Raises:
        BadBundle: there is none, or this machine does not trust it.
        MissingPackage: TensorRT is not installed, or there is no GPU.
    """
    if manifest.pending:
        raise BadBundle(
            f"the engine of {folder} is not compiled yet; compile it: edge-export --finalize "
            f"{folder}, or edgelm.load(..., compile_engine=True)"
        )
    fitting = _engines_here(manifest)
    for engine in fitting:
        entries = [manifest.files.get(file) for file in engine.files]
        if all(entry is not None and is_trusted(entry.sha256) for entry in entries):
            return engine
    raise BadBundle(
        f"{folder / fitting[0].file} was compiled elsewhere ({fitting[0].machine}), and an engine "
        f"is native code that runs with your rights; compile it here: edge-export --finalize "
        f"{folder}, or, if you trust where it is from: edge-export --trust {folder}"
    )


def has_engine_here(manifest: Manifest) -> bool:
    """Whether one of the bundle's engines is for this GPU and this TensorRT.

    Raises:
        MissingPackage: TensorRT is not installed, or there is no GPU.
    """
    return bool(engines_for(manifest, *_here(manifest)))


def _engines_here(manifest: Manifest) -> list[CompiledEngine]:
    sm, version = _here(manifest)
    fitting = engines_for(manifest, sm, version)
    if not fitting:
        raise BadBundle(
            f"no engine of this bundle runs here: {why_not(manifest, sm, version)}; compile it "
            "here: edge-export --finalize BUNDLE"
        )
    return fitting


def _here(manifest: Manifest) -> tuple[int, str]:
    """Return this GPU's compute capability times ten, and the version of its TensorRT."""
    from edgelm.runtime.engines.cuda import find_gpu

    version = str(load_module(manifest.engine.name).__version__)
    return find_gpu().sm, version


def _check_version(manifest: Manifest) -> None:
    """Raise BadBundle where ONNX Runtime is older than the bundle needs."""
    need, installed = manifest.engine, _installed_onnxruntime()
    if need.version and installed and _numbers(installed) < _numbers(need.version):
        raise BadBundle(
            f"this bundle needs {need.name} {need.version} or later, installed is {installed}; "
            "upgrade it, or export the bundle with the installed one"
        )


def _installed_onnxruntime() -> str | None:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """(1, 31) of 1.31 and of 1.31rc1."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
