"""Ed25519 keys in OpenSSH's form: private keys of `ssh-keygen -t ed25519`, public ones as lines.

The keys that a user trusts are in `~/.config/edgelm/trusted-keys` (the folder for settings on other
systems), one per line as in `authorized_keys`: `ssh-ed25519 BASE64 NAME`.
"""

import base64
import binascii
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from edgelm.errors import BadInput, MissingPackage
from edgelm.files.bounded_read import read_bounded
from edgelm.files.user_folders import config_folder
from edgelm.reasons import reason

KIND = "ssh-ed25519"
_PREFIX = b"\0\0\0\x0b" + KIND.encode() + b"\0\0\0\x20"  # RFC 8709: kind and length of the key
_KEY_BYTES = 32
_MAX_BYTES = 1 << 20


class PublicKey(NamedTuple):
    """A key of 32 bytes, and whose it is, as its line says."""

    raw: bytes
    name: str = ""

    @property
    def line(self) -> str:
        """As OpenSSH writes it."""
        blob = base64.b64encode(_PREFIX + self.raw).decode()
        return f"{KIND} {blob} {self.name}".rstrip()

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        digest = sha256(_PREFIX + self.raw).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def parse_public_key(line: str) -> PublicKey:
    """A key from its line.

    Raises:
        ValueError: another kind of key, or not a key.
    """
    kind, _, rest = line.strip().partition(" ")
    encoded, _, name = rest.strip().partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    raw = blob.removeprefix(_PREFIX)
    if kind != KIND or len(raw) != _KEY_BYTES or len(blob) != len(_PREFIX) + _KEY_BYTES:
        raise ValueError(f"expected '{KIND} BASE64 NAME', the public key of ssh-keygen -t ed25519")
    return PublicKey(raw, name.strip())


def trusted_keys_path() -> Path:
    """The user's list of trusted keys."""
    return config_folder() / "trusted-keys"


def read_trusted_keys(path: Path) -> list[PublicKey]:
    """The keys of a list; none where there is no such file.

    Raises:
        BadInput: a line that is not a key, or a file that cannot be read.
    """
    try:
        text = read_bounded(path, at_most=_MAX_BYTES).decode()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not text; expected a line per key: {KIND} BASE64 NAME") from None
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(parse_public_key(line))
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
    return keys


def read_private_key(path: Path) -> Any:
    """An Ed25519 private key of `cryptography`, from a file of OpenSSH or in PEM.

    Raises:
        BadInput: the file is missing, is not such a key, or is protected by a passphrase.
        MissingPackage: `cryptography` is not installed.
    """
    serialization = crypto("hazmat.primitives.serialization")
    ed25519 = crypto("hazmat.primitives.asymmetric.ed25519")
    text = _read_key(path)
    is_ssh = b"OPENSSH PRIVATE KEY" in text
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        key = load(text, password=None)
    except Exception as error:  # ValueError, TypeError with a passphrase, errors of its own
        raise BadInput(
            f"{path} is not a private key without a passphrase ({reason(error)}); make one with: "
            "ssh-keygen -t ed25519 -N '' -f KEY"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadInput(f"{path} is a key of another kind; expected Ed25519: ssh-keygen -t ed25519")
    return key


def _read_key(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise BadInput(f"the key {path} is not a file; make one with: ssh-keygen -t ed25519")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise BadInput(f"the key {path} cannot be read: {reason(error)}") from None


def crypto(module: str) -> Any:
    """A module of `cryptography`.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise MissingPackage(
            f"signatures of bundles need cryptography ({error}): pip install 'edgelm[sign]'"
        ) from None
