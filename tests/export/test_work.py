"""What one export computed, the next one does not compute again."""

import errno
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadInput, DoesNotFit
from edgelm.export import cached_steps
from edgelm.export.cached_steps import source_key
from edgelm.export.gate.measure import Evaluator
from edgelm.export.pipeline import export_model
from edgelm.export.quantize import quantizer
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache
from edgelm.files.staging import exclusive_lock
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.core.spec.test_rope import SCALINGS
from tests.folders import contents
from tests.forks import run_forked

Forbid = Callable[[], None]


@pytest.fixture(scope="module")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers: exports that search a mixture take half as long."""
    return save_tiny_chat(tmp_path_factory.mktemp("two-layers"), num_hidden_layers=2)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> Forbid:
    """From the call on, computing anything is an error."""

    def forbid() -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("this was computed before")

        monkeypatch.setattr(Reference, "hidden_states", fail)
        monkeypatch.setattr(quantizer, "quantize_by", fail)
        monkeypatch.setattr(cached_steps, "measure_sensitivity", fail)
        monkeypatch.setattr(cached_steps, "candidates_for", fail)
        monkeypatch.setattr(Evaluator, "measure", fail)

    return forbid


def graphs(bundle: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(bundle).items() if name.startswith("model.onnx")}


def only_folder(work: Path) -> Path:
    [folder] = [path for path in work.iterdir() if path.is_dir()]
    return folder


def files(work: Path, pattern: str) -> set[Path]:
    return {path for path in work.rglob(pattern) if path.is_file()}


@pytest.mark.parametrize("precision", ["auto", "int4"])
def test_the_next_export_loads_everything(
    tiny_chat: Path, tmp_path: Path, no_work: Forbid, precision: str
) -> None:
    work = tmp_path / "work"
    plain = export_model(tiny_chat, tmp_path / "plain", precision=precision, gate="off")
    export_model(tiny_chat, tmp_path / "first", precision=precision, gate="off", work=work)
    no_work()
    lines: list[str] = []
    second = export_model(
        tiny_chat,
        tmp_path / "second",
        precision=precision,
        gate="off",
        work=work,
        progress=lines.append,
    )
    assert any(f"resuming from {only_folder(work)}" in line for line in lines)
    assert graphs(tmp_path / "plain") == graphs(tmp_path / "first") == graphs(tmp_path / "second")
    assert second.gate == plain.gate
    assert second.precision == plain.precision


@pytest.mark.slow
def test_another_device_with_the_same_kernels_loads_everything(
    tmp_path: Path, no_work: Forbid
) -> None:
    source, work = save_tiny_chat(tmp_path / "source", context=512), tmp_path / "work"
    export_model(source, tmp_path / "orin", target="jetson-agx-orin-64gb", gate="off", work=work)
    no_work()
    export_model(source, tmp_path / "thor", target="jetson-thor-t5000", gate="off", work=work)


def test_a_killed_export_resumes(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = export_model(tiny_chat, tmp_path / "plain")
    work, output = tmp_path / "work", tmp_path / "bundle"
    words = (str(tiny_chat), str(output), "--work", str(work), "--kill-at", "tried")
    assert run_forked("tests.export.die_exporting", *words) == -signal.SIGKILL
    candidates = {path: path.stat().st_mtime_ns for path in files(work, "candidate*")}
    assert candidates

    for name in ("measure_sensitivity", "candidates_for"):
        monkeypatch.setattr(cached_steps, name, None)
    monkeypatch.setattr(Reference, "hidden_states", None)
    assert export_model(tiny_chat, output, work=work).gate == plain.gate
    assert all(path.stat().st_mtime_ns == before for path, before in candidates.items())
    assert graphs(output) == graphs(tmp_path / "plain")


def test_what_a_kill_left_of_calibration_does_not_count(tiny_chat: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    export_model(tiny_chat, tmp_path / "first", precision="int4", gate="off", work=work)
    [moments] = files(work, "layers.0.mlp.down.hessian")
    whole = moments.read_bytes()
    for path in files(work, "*.safetensors"):  # as after a kill: sums of a part of the text
        path.unlink()
    moments.write_bytes(b"\1" * len(whole))
    (moments.parent / ".calibration.safetensors.partial-edgelm-0123456789abcdef").write_bytes(
        b"half"
    )

    export_model(tiny_chat, tmp_path / "second", precision="int4", gate="off", work=work)
    assert moments.read_bytes() == whole
    assert graphs(tmp_path / "first") == graphs(tmp_path / "second")
    assert not files(work, ".*")


@pytest.mark.slow
@pytest.mark.parametrize("left", [None, b"half"], ids=["gone", "cut"])
def test_lost_moments_are_collected_again(
    tiny_chat: Path, tmp_path: Path, left: bytes | None
) -> None:
    work = tmp_path / "work"
    export_model(tiny_chat, tmp_path / "first", precision="int4", gate="off", work=work)
    [moments] = files(work, "layers.0.mlp.down.hessian")
    whole = moments.read_bytes()
    moments.unlink()
    if left:
        moments.write_bytes(left)
    for path in files(work, "* int4*"):
        path.unlink()
    export_model(tiny_chat, tmp_path / "second", precision="int4", gate="off", work=work)
    assert moments.read_bytes() == whole
    assert graphs(tmp_path / "first") == graphs(tmp_path / "second")


@pytest.mark.slow
def test_devices_with_other_kernels_share_what_the_source_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, work = save_tiny_chat(tmp_path / "source", context=512), tmp_path / "work"
    export_model(source, tmp_path / "cpu", precision="int4", gate="off", work=work)
    monkeypatch.setattr(Reference, "hidden_states", None)
    for method in ("gptq", "rtn"):
        options: dict[str, Any] = {"precision": "int4", "method": method, "gate": "off"}
        export_model(source, tmp_path / "b", target="jetson-agx-orin-64gb", work=work, **options)
        export_model(
            source, tmp_path / "fp16", target="rtx-4060-laptop", precision="fp16", work=work
        )
    assert len(files(work, "calibration*.safetensors")) == 1


def test_moments_are_collected_by_the_first_that_needs_them(
    tiny_chat: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    options: dict[str, Any] = {"precision": "int4", "gate": "off"}
    export_model(tiny_chat, tmp_path / "rtn", method="rtn", work=work, **options)
    export_model(tiny_chat, tmp_path / "gptq", method="gptq", work=work, **options)
    export_model(tiny_chat, tmp_path / "alone", method="gptq", **options)
    assert graphs(tmp_path / "gptq") == graphs(tmp_path / "alone")


@pytest.mark.slow
def test_candidates_of_another_engine_are_measured_again(tmp_path: Path) -> None:
    source, work = save_tiny_chat(tmp_path / "source", context=512), tmp_path / "work"
    export_model(source, tmp_path / "cpu", kv="fp32", gate="off", work=work)
    before = files(work, "candidate*")
    options: dict[str, Any] = {"target": "rtx-4060-laptop", "engine": "onnxruntime-cuda"}
    export_model(source, tmp_path / "cuda", gate="off", work=work, **options)
    assert before < files(work, "candidate*")


@pytest.mark.slow
def test_what_results_depend_on_keeps_them_apart(tiny_chat: Path, tmp_path: Path) -> None:
    work, other = tmp_path / "work", save_tiny_chat(tmp_path / "other", "qwen3")
    text = tmp_path / "text.txt"
    text.write_text("It rains on the hills, and the river carries it to the sea. " * 60)

    def folders(source: Path, **options: Any) -> tuple[int, int, int]:
        """Sources, texts and methods."""
        export_model(source, tmp_path / "b", precision="int4", gate="off", work=work, **options)
        levels = ("*/", "*/*/", "*/*/*/")
        counts = (sum(path.is_dir() for path in work.glob(level)) for level in levels)
        return tuple(counts)  # type: ignore[return-value]

    assert folders(tiny_chat) == (1, 1, 1)
    assert folders(tiny_chat, group_size=32) == (1, 1, 1)
    assert folders(tiny_chat, gate_text=text) == (1, 1, 1)
    assert folders(tiny_chat, exceptions={"*.o": "int8"}) == (1, 1, 1)
    assert folders(tiny_chat, method="gptq") == (1, 1, 2)
    assert folders(tiny_chat, kv="fp32") == (1, 1, 3)
    assert folders(tiny_chat, calibration=text) == (1, 2, 4)
    assert folders(tiny_chat, context=64) == (1, 3, 5), "the text is cut to the context"
    assert folders(other) == (2, 4, 6)


def test_two_exports_take_turns(tiny_chat: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    export_model(tiny_chat, tmp_path / "first", precision="int8", gate="off", work=work)
    waiting = threading.Event()

    def progress(line: str) -> None:
        if "waiting for another export" in line:
            waiting.set()

    second = threading.Thread(
        target=export_model,
        args=(tiny_chat, tmp_path / "second"),
        kwargs={"precision": "int8", "gate": "off", "work": work, "progress": progress},
    )
    with exclusive_lock(only_folder(work), lambda: None):
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
    with pytest.raises(BadInput, match="holds other files than edgelm's intermediate results"):
        export_model(tiny_chat, tmp_path / "b", work=home)
    with pytest.raises(BadInput, match="is a file; expected a folder"):
        export_model(tiny_chat, tmp_path / "b", work=file)
    assert contents(home) == {"letter.txt": b"dear"}
    assert not (tmp_path / "b").exists()


def test_without_locks_it_is_refused(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(BadInput, match="cannot be locked on this system"):
        export_model(tiny_chat, tmp_path / "b", work=tmp_path / "work")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_cannot_be_made(tiny_chat: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        BadInput, match=r"cannot write intermediate results to .*file/work: Not a directory"
    ):
        export_model(tiny_chat, tmp_path / "b", work=tmp_path / "file" / "work")


@pytest.mark.parametrize("scaled", [False, True])
def test_the_context_counts_where_rotations_depend_on_it(tmp_path: Path, scaled: bool) -> None:
    original = {"original_max_position_embeddings": 600}
    rope = SCALINGS["longrope"] | {"rope_theta": 10_000.0} | original
    over = {"rope_parameters": rope, **original} if scaled else {}
    checkpoint = open_checkpoint(save_tiny_chat(tmp_path, "phi3", context=2048, **over))
    found = {source_key(checkpoint, Reference(checkpoint), context) for context in (512, 1024)}
    assert len(found) == 1 + scaled


def test_the_output_cannot_hold_it(tiny_chat: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    export_model(tiny_chat, output, precision="int8", gate="off")
    before = contents(output)
    for work in (output, output / "work"):
        with pytest.raises(BadInput, match="is inside the output"):
            export_model(tiny_chat, output, work=work)
    assert contents(output) == before


def test_too_little_room_for_work(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=10_000 if work in path.parents else 10**12)

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(DoesNotFit, match=r"the bundle with the work folder needs about .* of disk"):
        export_model(tiny_chat, tmp_path / "b", work=work)


def test_a_full_disk_keeps_what_was_found(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, output = tmp_path / "work", tmp_path / "bundle"
    write = ArtifactCache._write

    def full(self: ArtifactCache, path: Path, content: bytes) -> None:
        if " int" in path.name:  # a quantized matrix
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(self, path, content)

    with monkeypatch.context() as patched:
        patched.setattr(ArtifactCache, "_write", full)
        with pytest.raises(DoesNotFit, match=f"{work} keeps the intermediate results"):
            export_model(tiny_chat, output, work=work)
    assert not output.exists()
    lines: list[str] = []
    export_model(tiny_chat, output, work=work, progress=lines.append)
    assert not any("calibrating" in line for line in lines)
