"""Checks for file names in a manifest: only plain relative names are allowed.

A manifest is untrusted input, and its names become paths that are read, written and removed.
"""

import re

ENGINES = "engines"
_MAX_PART_BYTES = 255  # limit of file systems
_MAX_BYTES = 1024


def check_name(name: str) -> None:
    """Raise ValueError unless a relative name stays inside its folder."""
    reason = _reason(name)
    if reason:
        raise ValueError(
            f"the name {_shown(name)} lies outside the bundle; do not use this bundle (the name "
            f"{reason}; expected a relative one with '/' between its parts)"
        )


def check_engine_name(name: str, *, suffix: str) -> None:
    """Raise ValueError unless a name is `engines/NAME` followed by `suffix`."""
    check_name(name)
    folder, _, file = name.rpartition("/")
    if folder != ENGINES or not file.endswith(suffix) or file == suffix:
        raise ValueError(
            f"the name {_shown(name)} does not have the form {ENGINES}/NAME{suffix}; do not use "
            "this bundle"
        )


def _reason(name: str) -> str:
    """What is wrong with a name; empty if it is valid."""
    if not name.isprintable() or "\\" in name:
        return "has a backslash or a character that cannot be printed"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is absolute"
    parts = name.split("/")
    if not all(parts) or any(part in (".", "..") for part in parts):
        return "has an empty part, '.' or '..'"
    encoded = [len(part.encode()) for part in parts]
    if max(encoded) > _MAX_PART_BYTES or sum(encoded) > _MAX_BYTES:
        return "is too long"
    return ""


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
