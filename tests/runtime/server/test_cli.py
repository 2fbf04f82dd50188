"""edge-serve as a process: it starts, stops without losing an answer, and says what is wrong."""

import json
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.server.settings import ServerSettings

KEY = "0123456789abcdef0123"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "secret question"}]}
OPEN = {"2": -100, "3": -100}


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address."""
    command = [sys.executable, "-m", "edgelm.runtime.server.cli", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = None
        for line in process.stdout:
            if found := re.match(r"listening on (\S+)", line):
                break
        assert found, process.communicate()[1]
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_a_running_answer_end(bundle: Path) -> None:
    with started(bundle, "--model", "tiny") as (process, url), httpx.Client(timeout=60) as client:
        body = {**ASK, "stream": True, "logit_bias": OPEN, "max_tokens": 60}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert process.wait(30) == 0
        assert process.stderr is not None
        logged = process.stderr.read()
    entries = [line for line in logged.splitlines() if line.startswith("{")]
    entry = json.loads(entries[-1])
    assert (entry["path"], entry["status"], entry["completion_tokens"]) == (
        "/v1/chat/completions",
        200,
        60,
    )
    assert "secret" not in logged
    assert "Traceback" not in logged


def test_the_text_is_logged_if_asked(bundle: Path) -> None:
    with started(bundle, "--model", "tiny", "--log-text") as (process, url):
        httpx.post(f"{url}/v1/chat/completions", json={**ASK, "max_tokens": 2}, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert "secret question" in process.communicate(timeout=30)[1]


def test_a_second_signal_does_not_wait(bundle: Path) -> None:
    with started(bundle, "--model", "tiny", "--grace", "100") as (process, url):
        lines: list[str] = []

        def read() -> None:
            body = {**ASK, "stream": True, "logit_bias": OPEN, "max_tokens": 100}
            with httpx.Client(timeout=60) as client:
                try:
                    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                        lines.extend(answer.iter_lines())
                except httpx.HTTPError:
                    pass

        reader = threading.Thread(target=read)
        reader.start()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        reader.join(60)


def make_certificate(certificate: Path, key: Path) -> None:
    """A certificate for this machine, and its private key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )


def test_tls(bundle: Path, tmp_path: Path) -> None:
    certificate, key, keys = (tmp_path / name for name in ("a.pem", "a.key", "keys"))
    make_certificate(certificate, key)
    keys.write_text(KEY)
    keys.chmod(0o600)
    options = ["--host", "0.0.0.0", "--api-key-file", keys, "--model", "tiny"]
    options += ["--tls-certificate", certificate, "--tls-key", key]
    with started(bundle, *options) as (_, url):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(
            base_url=url.replace("0.0.0.0", "127.0.0.1"), verify=context, timeout=60
        ) as client:
            assert client.get("/v1/models").status_code == 401
            headers = {"Authorization": f"Bearer {KEY}"}
            assert client.get("/v1/models", headers=headers).status_code == 200


def test_files_that_tls_cannot_use(tmp_path: Path) -> None:
    certificate, key, other, locked, text = (tmp_path / name for name in "abcde")
    make_certificate(certificate, key)
    make_certificate(tmp_path / "f", other)
    protect = ("openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret")
    subprocess.run([*protect, "-out", str(locked)], check=True, capture_output=True)
    text.write_text("no key")
    pairs = [
        (certificate, other, "they do not belong together"),
        (certificate, locked, "is encrypted, .*decrypt it: openssl pkey"),
        (certificate, text, "one of them is not in PEM format"),
        (text, key, "one of them is not in PEM format"),
    ]
    for chain, private, message in pairs:
        with pytest.raises(BadInput, match=message):
            ServerSettings(certificate=chain, private_key=private).check()
    ServerSettings(certificate=certificate, private_key=key).check()


ERRORS = {
    "no bundle": (["nothing"], "nothing is not a bundle"),
    "open to all": (["BUNDLE", "--host", "0.0.0.0"], "give --api-key-file"),
    "no key file": (["BUNDLE", "--api-key-file", "nothing"], "nothing cannot be read"),
    "half of tls": (["BUNDLE", "--tls-key", "a"], "TLS needs both"),
    "port": (["BUNDLE", "--port", "70000"], "'70000' is not a port"),
    "queue": (["BUNDLE", "--max-queue", "-1"], "not a whole number from zero"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(bundle: Path, arguments: list[str], message: str) -> None:
    given = [str(bundle) if one == "BUNDLE" else one for one in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "edgelm.runtime.server.cli", *given],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(bundle: Path) -> None:
    with started(bundle) as (_, url):
        port = url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "edgelm.runtime.server.cli", str(bundle), "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr
