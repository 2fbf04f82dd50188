"""A compiled engine as a file of a bundle, and the record of it."""

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from edgelm.bundle import CompiledEngine, Manifest, graph_sha256
from edgelm.bundle.file_names import ENGINES
from edgelm.devices.tensorrt_versions import PROFILES, RTX
from edgelm.errors import BadBundle
from edgelm.files.staging import replace_file
from edgelm.runtime.engines.tensorrt.build import Built
from edgelm.runtime.engines.trust import trust

# The names that `save_engine` gives: what it did not write it does not remove either.
ENGINE_NAME = re.compile(r"sm\d+(-sm\d+)*-(tensorrt|rtx)[\w.+-]*-[0-9a-f]{8}\.engine")


def save_engine(
    folder: Path,
    manifest: Manifest,
    built: Built,
    compute_capabilities: Sequence[int],
    *,
    machine: str,
    power_mode: str = "",
) -> CompiledEngine:
    """Write an engine that this machine compiled, and trust it.

    Its name ends in its hash, so that an older engine stays in place, and matches its manifest,
    until the manifest names the new one.

    Raises:
        BadBundle: `engines` is a link, which would lead the engine out of the bundle.
        BadInput: the list of trusted engines cannot be written.
    """
    if os.path.islink(folder / ENGINES):
        raise BadBundle(f"{folder / ENGINES} is a link; remove it and compile again")
    family = manifest.engine.name
    digest = sha256(built.content).hexdigest()
    gpus = "-".join(f"sm{sm}" for sm in compute_capabilities)
    library = "rtx" if family == RTX else family
    stem = f"{ENGINES}/{gpus}-{library}{built.version}-{digest[:8]}"
    replace_file(folder / f"{stem}.engine", built.content)
    trust(digest)
    return CompiledEngine(
        file=f"{stem}.engine",
        name=family,
        version=built.version,
        compute_capabilities=tuple(compute_capabilities),
        graph_sha256=graph_sha256(folder, manifest.graph),
        profiles=PROFILES[family],
        build_seconds=round(built.seconds, 2),
        machine=machine,
        power_mode=power_mode,
        runtime_cache=f"{stem}.cache" if family == RTX else "",
    )
