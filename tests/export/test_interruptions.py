"""An export that is interrupted, killed or out of disk leaves what was there before."""

import shutil
import signal
from pathlib import Path

import pytest

from edgelm.bundle import read_manifest, verify
from edgelm.export.pipeline import export_model
from tests.folders import contents
from tests.forks import run_forked


def run_child(source: Path, output: Path, *options: str) -> int:
    return run_forked(
        "tests.export.die_exporting", str(source), str(output), "--precision", "int8", *options
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

    precision = "auto" if stage == "tried" else "int8"  # which searches nothing and is quicker
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_chat, output, precision=precision, progress=interrupt)
    assert list(tmp_path.iterdir()) == ([output] if exists else [])
    if exists:
        assert contents(output) == contents(old_bundle)


def test_kill_leaves_the_old_bundle_and_the_next_export_cleans_up(
    tiny_chat: Path, old_bundle: Path, old: Path
) -> None:
    assert run_child(tiny_chat, old, "--kill-at", "passed") == -signal.SIGKILL
    assert contents(old) == contents(old_bundle)
    [partial] = set(old.parent.iterdir()) - {old}
    assert (partial / "new" / "model.onnx").is_file()  # it was killed in the midst of writing

    manifest = export_model(tiny_chat, old, precision="int8")
    verify(old, manifest)
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("limit", [5_000, 60_000], ids=["at-the-tokenizer", "at-the-weights"])
def test_full_disk_says_so_and_leaves_the_old_bundle(
    tiny_chat: Path,
    old_bundle: Path,
    old: Path,
    tmp_path_factory: pytest.TempPathFactory,
    limit: int,
) -> None:
    said = tmp_path_factory.mktemp("said") / "error.txt"
    assert run_child(tiny_chat, old, "--file-bytes", str(limit), "--said", str(said)) == 3
    assert "the disk is full: cannot write" in said.read_text()
    assert "MB there; nothing was left behind" in said.read_text()
    assert contents(old) == contents(old_bundle)
    assert list(old.parent.iterdir()) == [old]

    export_model(tiny_chat, old, precision="int8")
    verify(old, read_manifest(old))
