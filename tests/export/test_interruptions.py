"""An export that is interrupted, killed or out of disk leaves what was there before."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.bundle import read_manifest, verify
from edgelm.export.pipeline import export_model
from tests.folders import contents

_CHILD = """
import os, resource, signal, sys
import torch
from edgelm.errors import DoesNotFit
from edgelm.export.pipeline import export_model

torch.set_num_threads(1)
source, output, what = sys.argv[1:]


def kill(line):
    if what == "kill" and "gate" in line and "passed" in line:
        os.kill(os.getpid(), signal.SIGKILL)


if what != "kill":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails: EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(what), int(what)))
try:
    export_model(source, output, precision="int8", progress=kill)
except DoesNotFit as error:
    print(error)
    sys.exit(3)
"""


def run_child(source: Path, output: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, str(source), str(output), what]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def old_bundle(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("interruptions") / "bundle"
    export_model(tiny_chat, output, precision="fp32")
    return output


@pytest.fixture
def old(old_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that the interrupted export was to replace."""
    return shutil.copytree(old_bundle, tmp_path / "bundle")


@pytest.mark.parametrize("stage", ["exporting", "calibrating", "tried", "passed"])
@pytest.mark.parametrize("exists", [False, True], ids=["none-before", "one-before"])
def test_ctrl_c_leaves_what_was_there(
    tiny_chat: Path, old_bundle: Path, tmp_path: Path, stage: str, exists: bool
) -> None:
    output = tmp_path / "bundle"
    if exists:
        shutil.copytree(old_bundle, output)

    def interrupt(line: str) -> None:
        if stage in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_chat, output, progress=interrupt)
    assert list(tmp_path.iterdir()) == ([output] if exists else [])
    if exists:
        assert contents(output) == contents(old_bundle)


def test_kill_leaves_the_old_bundle_and_the_next_export_cleans_up(
    tiny_chat: Path, old_bundle: Path, old: Path
) -> None:
    killed = run_child(tiny_chat, old, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert contents(old) == contents(old_bundle)
    [partial] = set(old.parent.iterdir()) - {old}
    assert (partial / "new" / "model.onnx").is_file()  # it was killed in the midst of writing

    manifest = export_model(tiny_chat, old, precision="int8")
    verify(old, manifest)
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("limit", [5_000, 60_000], ids=["at-the-tokenizer", "at-the-weights"])
def test_full_disk_says_so_and_leaves_the_old_bundle(
    tiny_chat: Path, old_bundle: Path, old: Path, limit: int
) -> None:
    done = run_child(tiny_chat, old, str(limit))
    assert done.returncode == 3, done.stderr
    assert "the disk is full: cannot write" in done.stdout
    assert "MB there; nothing was left behind" in done.stdout
    assert contents(old) == contents(old_bundle)
    assert list(old.parent.iterdir()) == [old]

    export_model(tiny_chat, old, precision="int8")
    verify(old, read_manifest(old))
