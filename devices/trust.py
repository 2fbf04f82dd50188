"""Which compiled engines this machine trusts.

An engine is native code, and TensorRT's validity check detects no tampering: an engine runs here
if this machine compiled it, or if its user said so once. What is trusted is the SHA-256 of the
file, so that any change to it ends the trust.
"""

import os
from pathlib import Path

from edgelm.staging import replace_file


def _store() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "edgelm" / "trusted-engines.txt"


def trust(sha256: str) -> None:
    """Trust an engine from now on."""
    known = _known()
    if sha256 not in known:
        replace_file(_store(), "".join(f"{one}\n" for one in [*known, sha256]).encode())


def is_trusted(sha256: str) -> bool:
    """Whether this machine compiled it or was told to trust it."""
    return sha256 in _known()


def _known() -> list[str]:
    try:
        return _store().read_text().split()
    except FileNotFoundError:
        return []
