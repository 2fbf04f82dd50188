"""Public keys as OpenSSH writes them, and the user's list of them."""

import os
import subprocess
from pathlib import Path
from shutil import which

import pytest

from edgelm.bundle.signing.keys import (
    PublicKey,
    parse_public_key,
    read_private_key,
    read_trusted_keys,
)
from edgelm.errors import BadInput

# `ssh-keygen -t ed25519 -C maker`, and what `ssh-keygen -lf` prints of it.
LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f maker"


def test_a_line_is_read_and_written_alike() -> None:
    key = parse_public_key(LINE)
    assert key == PublicKey(bytes(range(32)), "maker")
    assert key.line == LINE


@pytest.mark.skipif(which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_fingerprint_is_that_of_openssh(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text(LINE + "\n")
    given = ["ssh-keygen", "-lf", str(path)]
    printed = subprocess.run(given, capture_output=True, text=True, check=True).stdout
    assert parse_public_key(LINE).fingerprint in printed


@pytest.mark.parametrize(
    "line",
    [
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB maker",
        LINE.split()[1],
        LINE.replace("Hh8f", "Hh8").replace("HR4f", "HR4"),
        "ssh-ed25519",
        "ssh-ed25519 !!!! maker",
    ],
    ids=["rsa", "no-kind", "short", "no-key", "not-base64"],
)
def test_what_is_not_a_key_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'ssh-ed25519 BASE64 NAME'"):
        parse_public_key(line)
    path = tmp_path / "trusted-keys"
    path.write_text(f"# whom I trust\n\n{LINE}\n{line}\n")
    with pytest.raises(BadInput, match=r"trusted-keys, line 4: expected 'ssh-ed25519"):
        read_trusted_keys(path)


def test_without_a_list_nobody_is_trusted(tmp_path: Path) -> None:
    assert read_trusted_keys(tmp_path / "none") == []
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not text"):
        read_trusted_keys(tmp_path / "binary")


def test_a_private_key_is_a_file(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadInput, match="is not a file"):
            read_private_key(path)
