"""What a signature of a bundle covers: the hash of every file, and the rest of the manifest.

Compiled engines are left out: a device compiles its own after the bundle was signed, and
edgelm.runtime.engines.trust decides which of them run. Fields that have their default are left
out, too, so that a later edgelm whose manifest has more fields states the same.
"""

import json
from hashlib import sha256
from typing import Any

import msgspec

from edgelm.bundle.file_names import ENGINES
from edgelm.bundle.manifest import Manifest
from edgelm.bundle.manifest_file import MANIFEST

_CONTEXT = "edgelm bundle"  # no other use of a key signs the same bytes


def statement_of(manifest: Manifest) -> dict[str, str]:
    """SHA-256 by name: of the listed files, and under `bundle.json` of what else it states."""
    files = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if not name.startswith(f"{ENGINES}/")
    }
    rest = msgspec.structs.replace(manifest, files={}, engines=())
    return {**files, MANIFEST: sha256(_canonical(_stated(rest))).hexdigest()}


def signed_bytes(statement: dict[str, str]) -> bytes:
    """The bytes that are signed."""
    return _canonical([_CONTEXT, statement])


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _stated(value: Any) -> Any:
    """Plain values of a record, without fields that have their default."""
    if isinstance(value, msgspec.Struct):
        found = {
            field.encode_name: _stated(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
        config = value.__struct_config__
        return found if config.tag_field is None else {**found, config.tag_field: config.tag}
    if isinstance(value, dict):
        return {str(name): _stated(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_stated(one) for one in value]
    return msgspec.to_builtins(value)


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(value == field.default_factory())
    return field.default is not msgspec.NODEFAULT and bool(value == field.default)
