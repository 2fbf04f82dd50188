"""What is killed: commands that write folders, what must hold after a kill, and after a new start.

Each case works in a folder of its own, beside things that are somebody else's.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgelm.bundle import read_manifest, verify
from edgelm.checkpoint.student import read_student_record
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from edgelm.compress.run.replaceable import student_files
from edgelm.export.pipeline import export_model
from edgelm.export.source.text import CALIBRATION, GATE
from edgelm.runtime.engines import cuda, finalize
from edgelm.runtime.engines.tensorrt.build import Built
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.compress.recipes import DISTILL, PRUNE, TEACHER, workshop, write_recipe
from tests.folders import contents
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT

THEIRS = {
    "notes.txt": b"mine",
    ".output.backup-2024/bundle.json": b"mine",
    ".output.v2.old-999999/bundle.json": b"the only copy",
    ".output.partial-edgelm-0123456789abcdef/bundle.json": b"mine",
}
_TENSORRT = "10.16.1.11"
_CONTEXT = 64  # tokens of a sequence of the texts, too
_CHARACTERS = 400


@dataclass(frozen=True)
class Case:
    """One command.

    prepare: makes the inputs, and an old output, in an empty folder.
    run: the command, in a folder that was prepared.
    check: raises AssertionError if the output in a folder is not whole.
    ours: names in the folder that stay beside THEIRS.
    beside: a command that runs at the same time, is never killed and must succeed.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    check: Callable[[Path], None]
    ours: tuple[str, ...] = ("source", "output")
    beside: Callable[[Path], None] | None = None


def _source(folder: Path) -> None:
    """One layer and two short texts: what an export computes is not the subject here."""
    save_tiny_chat(folder / "source", context=512, num_hidden_layers=1)
    for text in (CALIBRATION, GATE):
        first = json.loads(text.read_text().partition("\n")[0])["text"]
        (folder / "source" / f"{text.stem}.txt").write_text(first[:_CHARACTERS])


def export(folder: Path, output: str = "output", *, work: bool = False, **options: Any) -> None:
    """Export a case's source, in int8 and with its short texts."""
    texts = {name: folder / "source" / f"{name}.txt" for name in ("calibration", "gate")}
    options = {"precision": "int8", "context": _CONTEXT, **options}
    options["work"] = folder / "work" if work else None
    options |= {"calibration": texts["calibration"], "gate_text": texts["gate"], "gate": "off"}
    export_model(folder / "source", folder / output, **options)


def _export_beside(folder: Path) -> None:
    export(folder, "other", work=True, precision="int4")
    verify(folder / "other", read_manifest(folder / "other"))


def _export_prepare(folder: Path) -> None:
    _source(folder)
    export(folder, precision="fp32")


def _check_bundle(folder: Path) -> None:
    verify(folder / "output", read_manifest(folder / "output"))


def _compress_prepare(folder: Path) -> None:
    workshop(folder / "source")
    write_recipe(folder / "source", TEACHER, PRUNE, DISTILL.replace("1024", "512"))


def _compress(folder: Path) -> None:
    compress_model(read_recipe(folder / "source" / "recipe.toml"), folder / "output")


def _check_student(folder: Path) -> None:
    output = folder / "output"
    record = read_student_record(output)
    assert record is not None
    assert set(contents(output)) == student_files(output)


def _finalize_prepare(folder: Path) -> None:
    _source(folder)
    export(folder, target="jetson-agx-orin-64gb")


def _finalize(folder: Path) -> None:
    driver, patch = FakeCuda(sm=87), pytest.MonkeyPatch()
    os.environ |= {f"XDG_{kind}_HOME": str(folder / "source") for kind in ("CACHE", "CONFIG")}
    os.environ |= {f"XDG_{kind}_HOME": str(folder / "source") for kind in ("DATA", "STATE")}
    patch.setattr(cuda, "_binding", lambda: driver)
    patch.setitem(sys.modules, "tensorrt", FakeTensorRT(driver, _TENSORRT, chunk=128))

    def compiled(job: Any, progress: Any) -> Built:
        return Built(TITLE + str(job.graph).encode(), _TENSORRT, 12.5)

    patch.setattr(finalize, "compile_engine", compiled)
    finalize.finalize(folder / "output")


CASES = [
    Case("export", _export_prepare, export, _check_bundle),
    Case(
        "export-work",
        _export_prepare,
        partial(export, work=True),
        _check_bundle,
        ("source", "output", "work"),
    ),
    Case(
        "export-together",
        _export_prepare,
        partial(export, work=True),
        _check_bundle,
        ("source", "output", "other", "work"),
        beside=_export_beside,
    ),
    Case("export-rtx", _export_prepare, partial(export, target="rtx-4060-laptop"), _check_bundle),
    Case(
        "compress",
        _compress_prepare,
        _compress,
        _check_student,
        ("source", "output", "output.run"),
    ),
    Case("finalize", _finalize_prepare, _finalize, _check_bundle),
]


def prepare(case: Case, folder: Path) -> None:
    """Make a case's folder with all that is in it before."""
    folder.mkdir(parents=True)
    case.prepare(folder)
    for name, content in THEIRS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def check_theirs(folder: Path) -> None:
    """Raise AssertionError if anything that is somebody else's was touched."""
    for name, content in THEIRS.items():
        assert (folder / name).read_bytes() == content, f"{name} was touched"


def check_tidy(case: Case, folder: Path) -> None:
    """Raise AssertionError if anything is left of killed processes."""
    expected = {*case.ours, *(Path(name).parts[0] for name in THEIRS)}
    found = {path.name for path in folder.iterdir()}
    assert found == expected, f"left: {sorted(found ^ expected)}"
    hidden = [path for name in case.ours for path in (folder / name).rglob(".*partial*")]
    assert not hidden, f"left: {hidden}"


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a prepared folder."""
    return shutil.copytree(folder, to, symlinks=True)
