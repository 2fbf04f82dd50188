"""Keys to sign bundles with."""

from pathlib import Path

import pytest


def new_key(path: Path) -> str:
    """A private key in a file, and its public line."""
    pytest.importorskip("cryptography", reason="needs edgelm[sign]")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    path.write_bytes(pem)
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    line = f"{public.decode()} maker of bundles"
    path.with_name(f"{path.name}.pub").write_text(f"{line}\n")
    return line
