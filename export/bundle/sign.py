"""Sign a finished bundle, and take a signature away that no longer fits."""

from pathlib import Path

import msgspec

from edgelm.bundle import MANIFEST, FileEntry, Manifest, encode_manifest, read_manifest, verify
from edgelm.bundle.files import SIGNATURE
from edgelm.bundle.signing.keys import PublicKey, read_private_key
from edgelm.bundle.signing.signature import public_key, sign
from edgelm.export.bundle.model_card import CARD, with_section
from edgelm.files.hashing import file_sha256
from edgelm.files.replacing import replace_file

_TITLE = "Signature"


def sign_bundle(folder: Path, key_file: Path) -> PublicKey:
    """Write `signature.json` and a section of the model card; an older signature is replaced.

    The key's name is the comment in the `.pub` file next to it, or the name of its file.

    Raises:
        BadBundle: its files are not those of its manifest.
        BadInput: not an Ed25519 private key without a passphrase.
        MissingPackage: `cryptography` is not installed.
    """
    key = read_private_key(key_file)
    public = public_key(key, _name(key_file))
    manifest = read_manifest(folder)
    verify(folder, manifest)
    text = (
        f"Signed by {public.name}, Ed25519 key {public.fingerprint}. `edge-export --verify .` "
        "checks the signature and every file."
    )
    manifest = replace_card(folder, manifest, _TITLE, text)
    signature = msgspec.json.format(msgspec.json.encode(sign(manifest, key, public.name)), indent=1)
    replace_file(folder / SIGNATURE, signature + b"\n")
    return public


def remove_signature(folder: Path) -> bool:
    """Remove the signature of a bundle that changes; whether there was one."""
    card, path = folder / CARD, folder / SIGNATURE
    if not path.is_file():
        return False
    if card.is_file():
        replace_card(folder, read_manifest(folder), _TITLE, "")
    path.unlink()
    return True


def replace_card(folder: Path, manifest: Manifest, title: str, text: str) -> Manifest:
    """Replace a section of the model card, and write the manifest with its new hash."""
    path = folder / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    replace_file(path, with_section(card, title, text).encode())
    entry = FileEntry(path.stat().st_size, file_sha256(path))
    manifest = msgspec.structs.replace(manifest, files=manifest.files | {CARD: entry})
    replace_file(folder / MANIFEST, encode_manifest(manifest))
    return manifest


def _name(key_file: Path) -> str:
    public = key_file.with_name(f"{key_file.name}.pub")
    try:
        text = public.read_text(encoding="utf-8") if public.is_file() else ""
        comment = text.split(maxsplit=2)[2:]
    except (OSError, UnicodeDecodeError):
        comment = []
    return " ".join(comment[0].split()) if comment else key_file.stem
