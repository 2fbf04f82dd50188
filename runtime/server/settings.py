"""How a server runs: where it listens, who may use it, and its limits."""

import ipaddress
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import BadInput
from edgelm.reasons import reason

_MAX_KEY_FILE = 2**16
_MIN_KEY = 16


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a server.

    host, port: where it listens; port 0 takes a free one.
    model: the name that clients use.
    api_keys: one of them is needed as a bearer token; none on this machine's own address alone.
    certificate, private_key: PEM files for TLS.
    max_queue: requests that may wait for a sequence; more are refused with 429.
    max_body_bytes: of a request.
    body_seconds: in which the body of a request must have arrived.
    max_tokens: at most that many are generated, whatever a request says; None: up to the context.
    grace_seconds: for which running requests may continue when the server is stopped.
    log_text: whether prompts and answers are written to the log.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    model: str = "edgelm"
    api_keys: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    max_queue: int = 16
    max_body_bytes: int = 4_000_000
    body_seconds: float = 30.0
    max_tokens: int | None = None
    grace_seconds: int = 30
    log_text: bool = False

    def check(self) -> None:
        """Raise BadInput for settings that are unsafe or contradict each other."""
        if not self.api_keys and not is_loopback(self.host):
            raise BadInput(
                f"{self.host} can be reached from other machines: give --api-key-file, or listen "
                "on 127.0.0.1"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise BadInput("TLS needs both --tls-certificate and --tls-key")
        for path in (self.certificate, self.private_key):
            if path is not None and not path.is_file():
                raise BadInput(f"{path} is not a file; expected one in PEM format")
        if self.certificate is not None and self.private_key is not None:
            _check_tls(self.certificate, self.private_key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_tls(certificate: Path, key: Path) -> None:
    """Raise BadInput unless a server can use the two files."""

    def password() -> str:
        raise BadInput(
            f"{key} is encrypted, and nobody types its password when a service starts; decrypt it: "
            f"openssl pkey -in {key} -out KEY"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        wrong = (
            "they do not belong together"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"one of them is not in PEM format ({reason(error)})"
        )
        raise BadInput(f"{certificate} and {key} cannot be used for TLS: {wrong}") from None
    except OSError as error:
        raise BadInput(f"{certificate} or {key} cannot be read: {reason(error)}") from None


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read keys, one per line; lines that begin with # are comments.

    Raises:
        BadInput: not readable, readable by others, too large, no key, or one that can be guessed.
    """
    try:
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (
                stat.S_IRWXG | stat.S_IRWXO
            ):
                raise BadInput(f"other users can read {path}; run: chmod 600 {path}")
            content = file.read(_MAX_KEY_FILE + 1).decode("ascii")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {reason(error)}") from None
    except UnicodeDecodeError:
        raise BadInput(
            f"{path} has characters other than ASCII; expected one key per line"
        ) from None
    if len(content) > _MAX_KEY_FILE:  # a key that is cut off would be another one
        raise BadInput(f"{path} has more than {_MAX_KEY_FILE} bytes; expected one key per line")
    lines = (line.strip() for line in content.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise BadInput(f"{path} has no key; make one: openssl rand -hex 24 > {path}")
    if any(not character.isprintable() or character == " " for key in keys for character in key):
        raise BadInput(
            f"{path} has a key with a space or a control character; expected one key per line, and "
            "comments on lines of their own"
        )
    if short := [key for key in keys if len(key) < _MIN_KEY]:
        raise BadInput(
            f"{path} has a key of {len(short[0])} characters, expected at least {_MIN_KEY}; make "
            f"one: openssl rand -hex 24 > {path}"
        )
    return keys
