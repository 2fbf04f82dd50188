"""Exports that meet, sources that change, outputs that cannot be written."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgelm.bundle import read_manifest, verify
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.export.source.files import SourceFiles
from edgelm.files.hashing import file_sha256
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.faults.kills import start
from tests.folders import contents

FAST = {"precision": "int8", "gate": "off"}


def test_two_exports_to_one_output(tiny_chat: Path, tmp_path: Path) -> None:
    """In processes: transformers builds its models in one thread at a time."""
    output = tmp_path / "out" / "bundle"
    children = [
        start(partial(export_model, tiny_chat, output, precision=one, gate="off"), tmp_path / one)
        for one in ("int8", "fp32")
    ]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    verify(output, read_manifest(output))
    assert list(output.parent.iterdir()) == [output]


def replace(weights: Path) -> None:
    other = weights.with_name("other")
    other.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    other.replace(weights)


def overwrite(weights: Path) -> None:
    with weights.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")


def remove(weights: Path) -> None:
    weights.unlink()


def configure(weights: Path) -> None:
    path = weights.with_name("config.json")
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("change", [replace, overwrite, remove, configure])
def test_a_source_that_changes_stops_the_export(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source, work, output = save_tiny_chat(tmp_path / "source"), tmp_path / "work", tmp_path / "out"
    done: list[int] = []

    def progress(line: str) -> None:
        if "calibrating" in line and not done:
            done.append(1)
            change(source / "model.safetensors")

    with pytest.raises(BadCheckpoint, match="while the model was exported"):
        export_model(source, output, **FAST, work=work, progress=progress)  # type: ignore[arg-type]
    assert done
    assert not output.exists()
    kept = [path.name for path in work.rglob("*") if path.suffix in (".safetensors", ".json")]
    assert not [name for name in kept if "int8" in name], "nothing of a mixture is kept"


def test_a_hard_link_changes_nothing(tmp_path: Path) -> None:
    source = save_tiny_chat(tmp_path / "source")
    files = SourceFiles(open_checkpoint(source))
    (tmp_path / "link").hardlink_to(source / "model.safetensors")
    files.check()
    assert files.sha256 == file_sha256(source / "model.safetensors")


def test_the_source_in_the_output_is_refused(tiny_chat: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    export_model(tiny_chat, output, **FAST)  # type: ignore[arg-type]
    shutil.copytree(tiny_chat, output / "hf")
    before = contents(tmp_path)
    for source in (output / "hf", tiny_chat):  # the second: somebody's folder in the output
        with pytest.raises(BadInput, match=r"is inside the output|edgelm did not write"):
            export_model(source, output)
    shutil.move(output / "hf", tmp_path / "hf")
    (tmp_path / "text.txt").write_text("words " * 900)
    shutil.copy(tmp_path / "text.txt", output / "README.md")  # one that a bundle has itself
    for name in ("calibration", "gate_text"):
        with pytest.raises(BadInput, match="is inside the output"):
            export_model(tiny_chat, output, **{name: output / "README.md"})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="is inside the source"):
        export_model(tmp_path / "hf", tmp_path / "hf" / "bundle")
    assert len(before) + 1 == len(contents(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-size", "banana"], "'banana' is not a size; expected e.g. 98MB"),
        (["--max-size", "98"], "with a unit, e.g. 98MB"),
        (["-o", "a\0b"], "NUL"),
        (["-o", "a" * 300], "File name too long"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_chat: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_chat), "-o", str(tmp_path / "b"), *options]) == 2
    error = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert list(tmp_path.iterdir()) == []
