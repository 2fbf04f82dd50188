"""What a caller gives in place of a bundle, and how to get one from it."""

import os
from pathlib import Path

from edgelm.bundle import MANIFEST
from edgelm.errors import BadBundle, BadInput


def bundle_folder(given: object) -> Path:
    """The folder of a bundle, if there is a manifest in it.

    Raises:
        BadInput: not a path.
        BadBundle: not a bundle; the message has the command that makes one.
    """
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise BadInput(f"bundle is {given!r}, expected the folder that edge-export wrote")
    path = Path(given)
    if path.name == MANIFEST and path.is_file():
        raise BadBundle(f"{path} is the manifest of a bundle; give its folder: {path.parent}")
    if (path / MANIFEST).exists():
        return path
    raise BadBundle(f"{path} is not a bundle ({_reason(path)}): {_remedy(path)}")


def _reason(path: Path) -> str:
    if path.is_file():
        return "a bundle is a folder, this is a file"
    if not path.is_dir():
        return "there is no such folder"
    if (path / "config.json").exists():
        return f"it is a checkpoint, without {MANIFEST}"
    return f"it has no {MANIFEST}"


def _remedy(path: Path) -> str:
    is_model = path.is_file() or (path / "config.json").exists()
    if is_model:
        return f"export it with: edge-export {path} -o bundle/"
    return f"make one with: edge-export MODEL -o {path}"
