"""What one export found out, the next one does not find out again."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import BadInput, DoesNotFit
from edgelm.export import export, quantizer
from edgelm.export.reference import Reference
from edgelm.staging import alone_in
from tests.folders import contents
from tests.tiny_chat import save_tiny_chat

Forbid = Callable[[], None]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> Forbid:
    """From the call on, running the source or rounding a matrix is an error."""

    def forbid() -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("this was found out before")

        monkeypatch.setattr(Reference, "hidden_states", fail)
        monkeypatch.setattr(quantizer, "quantize_by", fail)

    return forbid


def graphs(bundle: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(bundle).items() if name.startswith("model.onnx")}


def only_folder(work: Path) -> Path:
    [folder] = [path for path in work.iterdir() if path.is_dir()]
    return folder


@pytest.mark.parametrize("precision", ["auto", "int4"])
def test_the_next_export_finds_everything(
    tiny_chat: Path, tmp_path: Path, no_work: Forbid, precision: str
) -> None:
    work = tmp_path / "work"
    plain = export(tiny_chat, tmp_path / "plain", precision=precision, gate="off")
    export(tiny_chat, tmp_path / "first", precision=precision, gate="off", work=work)
    no_work()
    said: list[str] = []
    second = export(
        tiny_chat,
        tmp_path / "second",
        precision=precision,
        gate="off",
        work=work,
        progress=said.append,
    )
    assert any(f"going on from {only_folder(work)}" in line for line in said)
    assert graphs(tmp_path / "plain") == graphs(tmp_path / "first") == graphs(tmp_path / "second")
    assert second.gate == plain.gate
    assert second.precision == plain.precision


def test_another_device_with_the_same_kernels_finds_everything(
    tmp_path: Path, no_work: Forbid
) -> None:
    source, work = save_tiny_chat(tmp_path / "source", context=512), tmp_path / "work"
    export(source, tmp_path / "orin", target="jetson-agx-orin-64gb", gate="off", work=work)
    no_work()
    export(source, tmp_path / "thor", target="jetson-thor-t5000", gate="off", work=work)


def test_a_killed_export_goes_on(tiny_chat: Path, tmp_path: Path) -> None:
    plain = export(tiny_chat, tmp_path / "plain")
    work, output = tmp_path / "work", tmp_path / "bundle"
    code = f"""
import os, signal, torch
from edgelm.export import export
torch.set_num_threads(1)
def kill(line):
    if "tried" in line:
        os.kill(os.getpid(), signal.SIGKILL)
export({str(tiny_chat)!r}, {str(output)!r}, work={str(work)!r}, progress=kill)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in only_folder(work).iterdir()}
    assert any(name.startswith("tried") for name in left)

    said: list[str] = []
    assert export(tiny_chat, output, work=work, progress=said.append).gate == plain.gate
    assert not any("sensitivity" in line for line in said)
    assert graphs(output) == graphs(tmp_path / "plain")


def test_what_a_kill_left_of_calibration_does_not_count(tiny_chat: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    export(tiny_chat, tmp_path / "first", precision="int4", gate="off", work=work)
    folder = only_folder(work)
    (moments,) = folder.glob("layers.0.mlp.down.moments")
    whole = moments.read_bytes()
    for path in folder.iterdir():  # as after a kill: sums of a part of the text, and no mark
        if path.suffix != ".moments":
            path.unlink()
    moments.write_bytes(b"\1" * len(whole))
    (folder / ".calibration.safetensors.partial-999999999").write_bytes(b"half")

    export(tiny_chat, tmp_path / "second", precision="int4", gate="off", work=work)
    assert moments.read_bytes() == whole
    assert graphs(tmp_path / "first") == graphs(tmp_path / "second")
    assert not list(folder.glob(".*"))


def test_what_findings_depend_on_keeps_them_apart(tiny_chat: Path, tmp_path: Path) -> None:
    work, other = tmp_path / "work", save_tiny_chat(tmp_path / "other", "qwen3")
    text = tmp_path / "text.txt"
    text.write_text("It rains on the hills, and the river carries it to the sea. " * 60)

    def folders(source: Path, **options: Any) -> int:
        export(source, tmp_path / "b", precision="int4", gate="off", work=work, **options)
        return sum(path.is_dir() for path in work.iterdir())

    assert folders(tiny_chat) == 1
    assert folders(tiny_chat, context=64) == 2, "the text is cut to the context"
    assert folders(tiny_chat, method="gptq") == 3
    assert folders(tiny_chat, kv="fp32") == 4
    assert folders(tiny_chat, calibration=text) == 5
    assert folders(other) == 6
    assert folders(tiny_chat, gate_text=text) == 6
    assert folders(tiny_chat, group_size=32) == 6


def test_two_exports_take_turns(tiny_chat: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    export(tiny_chat, tmp_path / "first", precision="int8", work=work)
    waiting = threading.Event()

    def progress(line: str) -> None:
        if "waiting for another export" in line:
            waiting.set()

    second = threading.Thread(
        target=export,
        args=(tiny_chat, tmp_path / "second"),
        kwargs={"precision": "int8", "work": work, "progress": progress},
    )
    with alone_in(only_folder(work), lambda: None):
        second.start()
        assert waiting.wait(60)
        assert not (tmp_path / "second").exists()
    second.join(60)
    assert graphs(tmp_path / "second") == graphs(tmp_path / "first")


def test_a_folder_that_holds_something_else_is_refused(tiny_chat: Path, tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "file"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    file.touch()
    with pytest.raises(BadInput, match="holds something else than kept work"):
        export(tiny_chat, tmp_path / "b", work=home)
    with pytest.raises(BadInput, match="is a file; expected a folder"):
        export(tiny_chat, tmp_path / "b", work=file)
    assert contents(home) == {"letter.txt": b"dear"}
    assert not (tmp_path / "b").exists()


def test_too_little_room_for_work(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10_000}))
    with pytest.raises(DoesNotFit, match=r"the work folder needs about .* of disk"):
        export(tiny_chat, tmp_path / "b", work=tmp_path / "work")
