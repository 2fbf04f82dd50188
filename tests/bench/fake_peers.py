"""A peers' environment whose interpreter is this one, or a script."""

import sys
from pathlib import Path


def make_peers(folder: Path, script: str = f'exec {sys.executable} "$@"') -> Path:
    """A folder for EDGELM_PEERS; `script` is what its Python does."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return folder
