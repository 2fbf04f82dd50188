"""Reading and writing `bundle.json`.

The file is untrusted: it is read as a small regular file, and every field is checked; the same
checks apply before writing. Its hash over its own contents detects damage; it is not a signature,
since whoever changes a bundle can compute it.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from edgelm.bundle.manifest import Manifest
from edgelm.bundle.manifest_checks import check_manifest
from edgelm.bundle.paths import inside
from edgelm.errors import BadBundle
from edgelm.files.bounded_read import read_bounded
from edgelm.files.json_files import unique_fields, value_count
from edgelm.reasons import reason

SCHEMA_VERSION = 1
DRAFT = "draft"  # the folder of a draft model's bundle, whose files the manifest lists
MANIFEST = "bundle.json"
SELF_HASH = "sha256"
_MAX_BYTES = 16 << 20
_MAX_VALUES = 1_000_000  # a file of brackets would need far more memory than one of text


def read_manifest(folder: Path) -> Manifest:
    """Read `bundle.json`.

    Raises:
        BadBundle: not a bundle, another schema, a field that is missing, out of range, of the wrong
            type or in contradiction to another, or a hash that does not match.
    """
    path = inside(folder, MANIFEST)
    if not _exists(path):
        raise _not_a_bundle(folder)
    try:
        raw = read_bounded(path, at_most=_MAX_BYTES)
    except FileNotFoundError:  # removed since the check
        raise _not_a_bundle(folder) from None
    return _decode(raw, str(path))


def _not_a_bundle(folder: Path) -> BadBundle:
    return BadBundle(
        f"{folder} is not a bundle (it has no {MANIFEST}); make one with: edge-export MODEL -o "
        f"{folder}"
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`; call it last: a folder without it is not a bundle."""
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """The text of `bundle.json`, with its hash.

    Raises:
        BadBundle: it could not be read again, e.g. because a gate's figures are NaN.
    """
    values = json.loads(msgspec.json.encode(manifest))
    whole = {**values, SELF_HASH: contents_sha256(values)}
    text = msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"
    try:
        check_manifest(manifest)  # before reading it back, which would find null in place of NaN
    except ValueError as error:
        raise BadBundle(f"this bundle cannot be written: {reason(error)}") from None
    _decode(text, f"the new {MANIFEST}")
    return text


def contents_sha256(values: dict[str, Any]) -> str:
    """SHA-256 of the contents without the hash itself, as compact JSON with sorted keys."""
    rest = {key: value for key, value in values.items() if key != SELF_HASH}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise BadBundle(f"{path} cannot be read: {reason(error)}") from None
    return True


def _decode(raw: bytes, name: str) -> Manifest:
    try:
        _check_version(raw, name)
        values = _parse(raw)
        manifest = msgspec.json.decode(raw, type=Manifest)
        check_manifest(manifest)
        _check_hash(values)
    except (ValueError, OverflowError, RecursionError) as error:  # of msgspec, json and ours
        raise BadBundle(
            f"{name} is damaged: {_reason(error)}; copy the bundle or export the model again"
        ) from None
    return manifest


def _check_version(raw: bytes, name: str) -> None:
    # First, since a newer file also differs in other ways.
    version = msgspec.json.decode(raw, type=_Version).schema_version
    if version > SCHEMA_VERSION:
        raise BadBundle(
            f"{name} has schema version {version}, this edgelm reads up to {SCHEMA_VERSION}; "
            "upgrade edgelm"
        )
    if version < 1:
        raise ValueError(f"schema_version is {version}, expected 1 to {SCHEMA_VERSION}")


def _parse(raw: bytes) -> dict[str, Any]:
    if value_count(raw) > _MAX_VALUES:
        raise ValueError(f"it has more than {_MAX_VALUES} values")
    values = json.loads(raw.decode(), object_pairs_hook=unique_fields, parse_constant=_no_number)
    return values if isinstance(values, dict) else {}


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _check_hash(values: dict[str, Any]) -> None:
    # Bundles of edgelm 0.1 have none.
    if SELF_HASH in values and values[SELF_HASH] != contents_sha256(values):
        raise ValueError(
            "its contents do not match its own SHA-256: it was changed after it was written"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 ({error.reason} at byte {error.start})"
    return reason(error)


class _Version(msgspec.Struct):
    schema_version: int
