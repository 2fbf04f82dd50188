"""The systemd unit and the Dockerfile start the server with options that it has."""

import json
import shlex
from pathlib import Path

import pytest

from edgelm.python310 import tomllib
from edgelm.runtime.server.cli import parser
from tests.docs.dockerfiles import read_dockerfile

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "deploy" / "edge-serve.service"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def settings(section: str) -> dict[str, str]:
    lines = UNIT.read_text().partition(f"[{section}]")[2].partition("\n[")[0].splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def test_the_unit_starts_the_server() -> None:
    service = settings("Service")
    command, *arguments = shlex.split(service["ExecStart"])
    assert Path(command).name == "edge-serve"
    given = parser().parse_args(arguments)
    assert int(service["TimeoutStopSec"]) > given.grace
    # What it writes lies in folders that systemd makes for it.
    assert str(given.prompt_cache).startswith(f"/var/cache/{service['CacheDirectory']}")
    assert given.host == "127.0.0.1"
    assert settings("Install")["WantedBy"] == "multi-user.target"


def test_the_container_starts_the_server_with_a_key() -> None:
    dockerfile = read_dockerfile(DOCKERFILE)
    (command,) = dockerfile.of("CMD")
    name, *arguments = json.loads(command)
    assert name == "edge-serve"
    given = parser().parse_args(arguments)
    assert given.host == "0.0.0.0"
    assert given.api_key_file == Path("/keys")
    assert dockerfile.of("EXPOSE") == [str(given.port)]
    assert dockerfile.of("USER") == ["edgelm"]
    assert dockerfile.undeclared() <= {"wheel"}


@pytest.mark.parametrize("extra", ["cpu", "serve"])
def test_the_container_installs_extras_that_exist(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    assert any(extra in command for command in read_dockerfile(DOCKERFILE).of("RUN"))
