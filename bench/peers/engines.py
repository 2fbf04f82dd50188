"""Who is measured: bundles, and peers made from the same source."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgelm.bench.peers.install import (
    OPTIMUM,
    SHARED,
    Environment,
    interpreter,
    missing_reason,
)
from edgelm.bench.peers.sources import Sources
from edgelm.bundle import Manifest
from edgelm.errors import UnknownName
from edgelm.quantize.precision import describe
from edgelm.spec.decoder import DecoderSpec


@dataclass(frozen=True)
class MeasuredEngine:
    """One engine with one model file, before it is started.

    spec: of its model; None is that of the report's first bundle.
    """

    name: str
    module: str
    python: Path | None
    prepare: Callable[[], Path]
    spec: DecoderSpec | None = None


@dataclass(frozen=True)
class SkippedEngine:
    """An engine that was requested and could not be measured."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Peer:
    module: str
    package: str
    variants: dict[str, Callable[[Sources], Path]]
    environment: Environment = SHARED


STATIC_CACHE = "transformers-static"  # the one that runs on a GPU
PEERS: dict[str, _Peer] = {
    "llama.cpp": _Peer(
        "edgelm.bench.engines.llama_cpp_worker",
        "llama_cpp",
        {kind: lambda sources, kind=kind: sources.gguf(kind) for kind in ("Q4_0", "Q4_K_M")},  # type: ignore[misc]
    ),
    "onnxruntime-genai": _Peer(
        "edgelm.bench.engines.genai_worker", "onnxruntime_genai", {"int4": Sources.genai}
    ),
    "transformers": _Peer(
        "edgelm.bench.engines.transformers_worker",
        "transformers",
        {"unquantized": Sources.huggingface},
    ),
    "optimum": _Peer(
        "edgelm.bench.engines.optimum_worker",
        "optimum.onnxruntime",
        {"fp32": Sources.optimum, "int8": Sources.optimum_int8},
        OPTIMUM,
    ),
    STATIC_CACHE: _Peer(
        "edgelm.bench.engines.static_cache_worker", "transformers", {"fp16": Sources.huggingface}
    ),
}


def bundle_engines(manifests: dict[Path, Manifest]) -> list[MeasuredEngine]:
    """Ours; the name says the mixture of precisions, and more where names would be the same."""
    engines = [_bundle_engine(*item) for item in manifests.items()]
    names = Counter(engine.name for engine in engines)
    return [
        replace(one, name=f"{one.name} ({folder})") if names[one.name] > 1 else one
        for one, folder in zip(engines, manifests, strict=True)
    ]


def _bundle_engine(folder: Path, manifest: Manifest) -> MeasuredEngine:
    kinds = Counter(describe(p).split()[0] for p in manifest.precision.values())
    mixture = "+".join(sorted(kinds))
    name = f"edgelm {mixture} {folder.resolve().name}"
    return MeasuredEngine(
        name, "edgelm.bench.engines.edgelm_worker", None, lambda: folder, manifest.spec
    )


def peer_environments(names: list[str]) -> list[Environment]:
    """The environments that these peers run in."""
    return list(dict.fromkeys(_peer(name).environment for name in names))


def peer_engines(
    names: list[str], sources: Sources | None
) -> tuple[list[MeasuredEngine], list[SkippedEngine]]:
    """The requested peers, and those of them that are not installed."""
    present: list[MeasuredEngine] = []
    skipped: list[SkippedEngine] = []
    for name in names:
        peer = _peer(name)
        if reason := missing_reason(peer.package, peer.environment):
            skipped.append(SkippedEngine(name, reason))
            continue
        assert sources is not None
        variants = dict(peer.variants)
        if name == "llama.cpp" and _is_quantized(sources):
            variants["source file"] = lambda sources: sources.gguf("source")
        present += [
            MeasuredEngine(
                f"{name} {variant}",
                peer.module,
                interpreter(peer.environment),
                lambda make=make: make(sources),  # type: ignore[misc]
                sources.checkpoint.spec,
            )
            for variant, make in variants.items()
        ]
    return present, skipped


def _peer(name: str) -> _Peer:
    if name not in PEERS:
        raise UnknownName(f"unknown peer {name!r}; known: {', '.join(PEERS)}")
    return PEERS[name]


def _is_quantized(sources: Sources) -> bool:
    """Whether the source is a GGUF model of fewer bits than its weights' own type."""
    checkpoint = sources.checkpoint
    if not checkpoint.is_gguf:
        return False
    size = sum(path.stat().st_size for path in checkpoint.weight_files)
    return size < 1.5 * checkpoint.spec.parameters
