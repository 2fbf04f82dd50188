"""Which of a bundle's compiled engines runs on a GPU."""

from edgelm.bundle import CompiledEngine, Manifest
from edgelm.bundle.files import listed_graph_sha256
from edgelm.devices.tensorrt_versions import TENSORRT


def engines_for(manifest: Manifest, sm: int, version: str) -> list[CompiledEngine]:
    """The engines that run here, those of this very version first, then the newest.

    Args:
        manifest: the bundle's manifest; it lists the graph's files.
        sm: the GPU's compute capability times ten.
        version: of the installed TensorRT or TensorRT-RTX.
    """
    graph = listed_graph_sha256(manifest)
    fitting = [
        engine
        for engine in manifest.engines
        if engine.name == manifest.engine.name
        and engine.graph_sha256 == graph
        and (not engine.compute_capabilities or sm in engine.compute_capabilities)
        # TensorRT-RTX checks versions itself; TensorRT reads only engines of its own version.
        and (engine.name != TENSORRT or engine.version == version)
    ]
    return sorted(fitting, key=lambda engine: engine.version != version)


def why_not(manifest: Manifest, sm: int, version: str) -> str:
    """Say why none of a bundle's engines runs here."""
    reasons = [_reason(engine, manifest, sm, version) for engine in manifest.engines]
    return "; ".join(dict.fromkeys(reasons))


def _reason(engine: CompiledEngine, manifest: Manifest, sm: int, version: str) -> str:
    if engine.name != manifest.engine.name:
        return f"{engine.file} is for {engine.name}, the bundle for {manifest.engine.name}"
    if engine.compute_capabilities and sm not in engine.compute_capabilities:
        made_for = ", ".join(f"sm_{one}" for one in engine.compute_capabilities)
        return f"{engine.file} was compiled for {made_for}, this GPU is sm_{sm}"
    if engine.graph_sha256 != listed_graph_sha256(manifest):
        return f"{engine.file} was compiled from another graph than the bundle's"
    return (
        f"{engine.file} was compiled by {engine.name} {engine.version}, installed is {version}, "
        "and no other version runs it"
    )
