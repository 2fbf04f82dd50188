"""Opening a hub id without a network: what the cache holds loads, the rest says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadInput
from tests.checkpoints.models import save_tiny

_OPEN = """
import sys
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import EdgeLMError

try:
    checkpoint = open_checkpoint(sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None)
except EdgeLMError as error:
    print(type(error).__name__, error)
else:
    total = float(checkpoint.tensor("model.norm.weight").sum())
    print(checkpoint.name, checkpoint.revision, checkpoint.license, total)
"""
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def open_offline(cache: Path, *arguments: str) -> str:
    """What a process without network says when it opens a hub id; the cache is laid out by us."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", _OPEN, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hub_id_offline_says_what_to_do(tmp_path: Path) -> None:
    said = open_offline(tmp_path, "org/absent", "v2")
    assert said.startswith("BadInput cannot fetch org/absent at revision v2 from the Hugging Face")
    assert "not in the local cache; check the name and the connection" in said
    assert "or download it elsewhere and pass the folder" in said


@pytest.mark.slow
def test_hub_id_in_the_cache_carries_its_commit(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / _COMMIT
    model = save_tiny("llama", snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(_COMMIT)
    name, revision, license_name, total = open_offline(tmp_path, "org/tiny").split()
    assert (name, revision, license_name) == ("org/tiny", _COMMIT, "mit")
    assert float(total) == pytest.approx(float(model.model.norm.weight.detach().sum()))


@pytest.mark.parametrize("name", ["my models/tiny", "org/tiny--2", "org/tiny.git"])
def test_name_that_no_hub_id_can_have(name: str) -> None:
    # A mistyped path looks like a hub id; nothing is fetched, since the name cannot exist.
    with pytest.raises(BadInput, match=name):
        open_checkpoint(name)
