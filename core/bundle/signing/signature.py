"""The signature of a bundle, `signature.json`: whose files these are (Ed25519, RFC 8032).

It is next to the manifest, which does not list it, and names the hash of every file: the graph,
the evaluation, the model card. A bundle without it runs; so does one that is signed by a stranger.
`edge-export --verify` says which of them it is.
"""

import base64
from pathlib import Path
from typing import Any

import msgspec

from edgelm.bundle.files import SIGNATURE
from edgelm.bundle.manifest import Manifest
from edgelm.bundle.paths import inside
from edgelm.bundle.signing.keys import (
    PublicKey,
    crypto,
    parse_public_key,
    read_trusted_keys,
    trusted_keys_path,
)
from edgelm.bundle.signing.statement import signed_bytes, statement_of
from edgelm.errors import BadBundle
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason

SCHEMA_VERSION = 1
_MAX_BYTES = 16 << 20
_SHOWN = 5


class Signature(msgspec.Struct, frozen=True):
    """Contents of `signature.json`.

    `key` is the public key as OpenSSH writes it, `statement` the signed hashes by file, and
    `signature` 64 bytes in base64.
    """

    schema_version: int
    key: str
    statement: dict[str, str]
    signature: str


def sign(manifest: Manifest, key: Any, name: str) -> Signature:
    """Sign what a manifest states.

    Args:
        manifest: of a whole bundle.
        key: an Ed25519 private key of `cryptography`.
        name: whose key it is.
    """
    statement = statement_of(manifest)
    made = base64.b64encode(key.sign(signed_bytes(statement))).decode()
    return Signature(SCHEMA_VERSION, public_key(key, name).line, statement, made)


def public_key(key: Any, name: str) -> PublicKey:
    """The public half of a private key."""
    return PublicKey(key.public_key().public_bytes_raw(), name)


def check_signature(folder: Path, manifest: Manifest) -> PublicKey | None:
    """Whose signature a bundle has, named as the user's list does; None without one.

    The files must have been compared with the manifest before.

    Raises:
        BadBundle: the signature is damaged or forged, the bundle was changed since, or its key is
            not one that the user trusts.
        BadInput: the user's list of trusted keys cannot be read.
        MissingPackage: `cryptography` is not installed.
    """
    path = inside(folder, SIGNATURE)
    try:
        raw = read_bounded(path, at_most=_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(raw, type=Signature)
        if found.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {found.schema_version}, not {SCHEMA_VERSION}")
        key = parse_public_key(found.key)
        signature = base64.b64decode(found.signature, validate=True)
    except (ValueError, RecursionError) as error:
        raise BadBundle(
            f"{path} is damaged ({reason(error)}); copy the bundle again, or sign it again"
        ) from None
    _check_bytes(path, key, signature, found.statement)
    _check_statement(path, found.statement, statement_of(manifest))
    return _trusted(path, key)


def _check_bytes(path: Path, key: PublicKey, signature: bytes, statement: dict[str, str]) -> None:
    ed25519 = crypto("hazmat.primitives.asymmetric.ed25519")
    invalid = crypto("exceptions").InvalidSignature
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key.raw).verify(
            signature, signed_bytes(statement)
        )
    except (invalid, ValueError):
        raise BadBundle(
            f"{path} was not signed by the key that it names, {key.fingerprint}; do not trust this "
            "bundle, and get it again from its author"
        ) from None


def _check_statement(path: Path, signed: dict[str, str], found: dict[str, str]) -> None:
    names = sorted(name for name in {*signed, *found} if signed.get(name) != found.get(name))
    if not names:
        return
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise BadBundle(
        f"{', '.join(names[:_SHOWN])}{more} changed after {path} was written; get the bundle again "
        "from its author, or sign it again if the change was yours (edge-export --sign)"
    )


def _trusted(path: Path, key: PublicKey) -> PublicKey:
    trusted = trusted_keys_path()
    for one in read_trusted_keys(trusted):
        if one.raw == key.raw:
            return one
    raise BadBundle(
        f"{path} was signed by a key that you do not trust, {key.fingerprint}; if its owner "
        f"confirms this fingerprint, add this line to {trusted}: {key.line}"
    )
