"""What an export may replace: the files of an older bundle, and nothing else."""

from pathlib import Path
from typing import Any

import msgspec

from edgelm.bundle import MANIFEST
from edgelm.bundle.files import SIGNATURE
from edgelm.errors import BadInput
from edgelm.reasons import reason

_ENGINES = "engines"


class _Written(msgspec.Struct):
    """The files that a manifest of any version names."""

    files: dict[str, Any] = {}
    engines: list[dict[str, Any]] = []


def bundle_files(folder: Path) -> set[str]:
    """Relative names of the files that a bundle consists of; none without a manifest.

    Raises:
        BadInput: its manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return set()
    try:
        written = msgspec.json.decode(path.read_bytes(), type=_Written)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is damaged ({reason(error)}), so it is unknown which files of the folder "
            "belong to the bundle; remove the folder or choose another one"
        ) from None
    caches = {str(engine.get("runtime_cache")) for engine in written.engines}
    # Complete engines that no manifest names: a killed `edge-export --finalize` left them.
    engines = {
        path.relative_to(folder).as_posix()
        for path in (folder / _ENGINES).glob("*.engine")
        if path.is_file()
    }
    return {MANIFEST, SIGNATURE, *written.files, *caches, *engines}
