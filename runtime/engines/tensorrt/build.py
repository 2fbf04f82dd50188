"""Compile a graph: parse, set profiles, build, with the elapsed time while it lasts.

TensorRT reports no progress that means anything (its monitor is silent for most of a build), so
what is shown is the time, and never a bar.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgelm.bundle import GraphContract, GraphSegment
from edgelm.devices.tensorrt_versions import PROFILES, RTX, load_module, release_of
from edgelm.errors import BadBundle, DoesNotFit, UnknownName
from edgelm.files.staging import replace_file
from edgelm.runtime.engines.tensorrt.profiles import add_profile

Progress = Callable[[str], None]
_TICK_S = 10.0


class Job(NamedTuple):
    """What to compile.

    `context` is how many tokens the cache can grow to hold. `compute_capabilities` are the GPUs to
    compile for ahead of time; empty means this machine's. `profiles` is 2 for a decode profile of
    its own; by default what suits the family. `timing_cache` is a file that later builds on the
    same machine start from. `part` is the segment that `graph` is the file of; None where the
    graph is whole.
    """

    graph: Path
    contract: GraphContract
    family: str
    prefill_chunk: int
    context: int
    compute_capabilities: tuple[int, ...] = ()
    profiles: int | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    part: GraphSegment | None = None


class Built(NamedTuple):
    """A compiled engine and how long it took."""

    content: Any  # a buffer
    version: str
    seconds: float


def compile_engine(job: Job, progress: Progress) -> Built:
    """Compile.

    Raises:
        MissingPackage: TensorRT is not installed.
        BadBundle: TensorRT cannot read the graph, or is too old for it.
        DoesNotFit: it ran out of memory.
        UnknownName: it cannot compile for a requested GPU.
    """
    trt = load_module(job.family)
    version = str(trt.__version__)
    check_dialect(job.family, version, job.contract)
    release = release_of(job.family, version)
    log = _log(trt)
    with _quietly_failing(log, job):
        builder = trt.Builder(log)
        flags = 0
        if release.typed_flag:
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        _parse(trt, network, log, job.graph)
        _allow_plain_attention(trt, network)
        config = builder.create_builder_config()
        if job.workspace_bytes:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
        if job.compute_capabilities:
            _compile_for(trt, config, job)
        for tokens in (job.prefill_chunk, 1)[: job.profiles or PROFILES[job.family]]:
            part = job.part or job.contract.parts[0]
            add_profile(builder, config, job.contract, part, tokens, job.context)
        cache = _timing_cache(config, job)
        started = time.monotonic()
        with _ticking(f"compiling with {job.family} {version}", progress):
            content = builder.build_serialized_network(network, config)
        seconds = time.monotonic() - started
    if content is None:
        raise _failure(log, job)
    if cache is not None and job.timing_cache is not None:
        with contextlib.suppress(OSError):  # it only saves time: the engine is there
            replace_file(job.timing_cache, bytes(cache.serialize()))
    return Built(content, version, seconds)


def check_dialect(family: str, version: str, contract: GraphContract) -> None:
    """Raise BadBundle where a version does not compile a graph's dialect."""
    release = release_of(family, version)
    if contract.dialect not in release.dialects:
        raise BadBundle(
            f"{family} {version} compiles the {' and '.join(release.dialects)} dialect, this "
            f"bundle's graph is {contract.dialect}; export it again for this version: "
            "edge-devices show TARGET lists the device's engines, edge-export --engine chooses one"
        )


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Collects TensorRT's errors, for our own message."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


@contextmanager
def _quietly_failing(log: Any, job: Job) -> Iterator[None]:
    """TensorRT without a driver returns nothing, which pybind turns into a TypeError."""
    try:
        yield
    except (TypeError, RuntimeError, MemoryError) as error:
        raise _failure(log, job, str(error)) from None


def _failure(log: Any, job: Job, what: str = "") -> Exception:
    cause = "; ".join(dict.fromkeys(log.errors)) or what or "it gave no reason"
    words = cause.lower()
    if "error 35" in words or "no cuda-capable device" in words or "error 100" in words:
        return BadBundle(
            f"{job.family} found no NVIDIA GPU here ({cause}); copy the bundle to the device and "
            "run there: edge-export --finalize BUNDLE"
        )
    if "out of memory" in words or "outofmemory" in words or "bad_alloc" in words:
        return DoesNotFit(
            f"{job.family} ran out of memory ({cause}); close other programs, add swap, or export "
            "with fewer bits or a shorter --context"
        )
    if "cannot compile for target" in words:
        return UnknownName(f"{cause}; choose another --precision")
    return BadBundle(f"{job.family} could not compile {job.graph}: {cause}")


def _parse(trt: Any, network: Any, log: Any, graph: Path) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    causes = "; ".join(f"{one.node_name()} ({one.node_operator()}): {one.desc()}" for one in errors)
    raise BadBundle(
        f"TensorRT {trt.__version__} cannot read {graph}: {causes or 'it gives no reason'}; export "
        "the bundle again for this version: edge-devices show TARGET lists the device's engines"
    )


def _allow_plain_attention(trt: Any, network: Any) -> None:
    """Let attention be plain products where no fused kernel has its shape, in place of an error.

    The importer leaves this off, and older bindings do not show the layer: then it stays off.
    """
    if not hasattr(trt, "IAttentionInputLayer"):
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class
            layer.attention.decomposable = True


def _compile_for(trt: Any, config: Any, job: Job) -> None:
    known = trt.ComputeCapability
    missing = [sm for sm in job.compute_capabilities if not hasattr(known, f"SM{sm}")]
    if missing:
        has = sorted(int(name[2:]) for name in dir(known) if name[2:].isdigit())
        raise UnknownName(
            f"{job.family} {trt.__version__} does not compile for SM {_list(missing)}; it has "
            f"{_list(has)}"
        )
    config.num_compute_capabilities = len(job.compute_capabilities)
    for index, sm in enumerate(job.compute_capabilities):
        config.set_compute_capability(getattr(known, f"SM{sm}"), index)


def _timing_cache(config: Any, job: Job) -> Any:
    """What earlier builds on this machine measured; TensorRT-RTX measures nothing."""
    if job.timing_cache is None or job.family == RTX:
        return None
    try:
        known = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
    except OSError:
        known = b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, False)
    return cache


@contextmanager
def _ticking(what: str, progress: Progress) -> Iterator[None]:
    progress(what)
    done = threading.Event()
    started = time.monotonic()

    def tick() -> None:
        while not done.wait(_TICK_S):
            progress(f"{what}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _list(compute_capabilities: Sequence[int]) -> str:
    return ", ".join(map(str, compute_capabilities))
