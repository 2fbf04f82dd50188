"""The manifest's hash of itself, as a forger would compute it."""

import json
from hashlib import sha256
from typing import Any

_FIELD = "sha256"


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest's values with the hash over them made right again, where there is one."""
    if _FIELD not in manifest:
        return manifest
    rest = {key: value for key, value in manifest.items() if key != _FIELD}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, _FIELD: sha256(text.encode()).hexdigest()}
