"""Compiling a bundle's engine on its device: what is recorded, what is refused, what a kill leaves.

Without a GPU the compiler is stood in for; the engine that it gives runs the bundle's own graph, so
that the gate on the engine is a real one.
"""

import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest

import edgelm
from edgelm.bundle import Manifest, read_manifest
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.swap import SwapArea
from edgelm.devices.planner.memory.build_memory import build_peak
from edgelm.errors import BadBundle, BadInput, DoesNotFit, GateFailed, MissingPackage
from edgelm.export.pipeline import export_model
from edgelm.runtime.engines import cuda, finalize
from edgelm.runtime.engines.open import open_session
from edgelm.runtime.engines.tensorrt.build import Built, Job
from edgelm.runtime.engines.trust import is_trusted
from tests.folders import contents
from tests.forks import run_forked
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT

VERSION = "10.16.1.11"


@pytest.fixture(scope="module")
def pending(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for Jetson Orin as it leaves the machine that exports it."""
    folder = tmp_path_factory.mktemp("jetson") / "bundle"
    manifest = export_model(tiny_chat, folder, target="jetson-orin", precision="fp16")
    assert manifest.pending
    return folder


@pytest.fixture
def bundle(pending: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pending, tmp_path / "bundle")


Compile = Callable[[Job, Any], Built]


def compiled(job: Job, progress: Any) -> Built:
    """What TensorRT would give: here a note of which graph to run."""
    assert job.family == "tensorrt"
    return Built(TITLE + str(job.graph).encode(), VERSION, 12.5)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with Orin's GPU and a TensorRT whose compiler is stood in for."""
    driver = FakeCuda(sm=87)
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(driver, VERSION, chunk=128))
    monkeypatch.setattr(finalize, "compile_engine", compiled)
    return driver


def test_the_engine_is_compiled_judged_recorded_and_trusted(bundle: Path, orin: FakeCuda) -> None:
    said: list[str] = []
    manifest = finalize.finalize(bundle, progress=said.append)
    assert manifest == read_manifest(bundle)
    assert not manifest.pending
    [engine] = manifest.engines
    assert (engine.name, engine.version, engine.compute_capabilities) == (
        "tensorrt",
        VERSION,
        (87,),
    )
    assert engine.build_seconds == 12.5
    assert engine.profiles == 2
    assert manifest.check is not None
    assert engine.graph_sha256 == manifest.check.graph_sha256
    assert engine.gate is not None
    assert engine.gate.passed
    assert engine.gate.gate_class == "16-bit"
    assert is_trusted(manifest.files[engine.file].sha256)
    assert any(line.startswith("gate 16-bit on the engine: KL 0.0") for line in said)


def test_it_runs_then_and_is_not_compiled_again(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalize.finalize(bundle)
    monkeypatch.setattr(finalize, "compile_engine", None)
    with edgelm.load(bundle) as lm:
        assert len(lm.generate("The miller", max_tokens=5).tokens) <= 5


def test_a_load_compiles_if_asked(bundle: Path, orin: FakeCuda) -> None:
    with pytest.raises(BadBundle, match="not compiled yet; compile it: edge-export --finalize"):
        edgelm.load(bundle)
    with edgelm.load(bundle, compile_engine=True) as lm:
        assert lm.context == read_manifest(bundle).limits.context
    assert not read_manifest(bundle).pending


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_a_kill_while_compiling_leaves_it_pending(
    error: BaseException, bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(job: Job, progress: Any) -> Built:
        raise error

    before = contents(bundle)
    monkeypatch.setattr(finalize, "compile_engine", die)
    with pytest.raises(type(error)):
        finalize.finalize(bundle)
    assert contents(bundle) == before
    monkeypatch.setattr(finalize, "compile_engine", compiled)
    assert not finalize.finalize(bundle).pending


def test_a_kill_before_the_manifest_is_written(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine lies there whole, nobody loads it, and the next run finishes."""
    with monkeypatch.context() as patch:
        patch.setattr(finalize, "_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finalize.finalize(bundle)
    assert read_manifest(bundle).pending
    with pytest.raises(BadBundle, match="is not compiled yet; compile it: edge-export --finalize"):
        open_session(bundle, read_manifest(bundle), capacity=64)
    assert not finalize.finalize(bundle).pending


@pytest.mark.parametrize(("when", "left"), [("compiling", 0), ("saving", 1), ("recording", 1)])
def test_kill_9_and_start_again(bundle: Path, orin: FakeCuda, when: str, left: int) -> None:
    before = contents(bundle)
    assert run_forked("tests.runtime.die_finalizing", str(bundle), when) == -signal.SIGKILL
    assert contents(bundle).items() >= before.items()
    assert len(contents(bundle)) == len(before) + left
    assert read_manifest(bundle).pending
    with pytest.raises(BadBundle, match="is not compiled yet"):
        open_session(bundle, read_manifest(bundle), capacity=64)
    [engine] = finalize.finalize(bundle).engines
    assert [*(bundle / "engines").iterdir()] == [bundle / engine.file], "no half is left"


def test_what_a_killed_process_compiled_is_removed(bundle: Path, orin: FakeCuda) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "sm87-tensorrt10.16-0badbeef.engine").write_bytes(b"of another build")
    [engine] = finalize.finalize(bundle).engines
    assert [*(bundle / "engines").iterdir()] == [bundle / engine.file]


def test_two_processes_compile_once(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one waits for the first and takes its engine."""
    compiling, waiting, calls = Event(), Event(), []

    def slow(job: Job, progress: Any) -> Built:
        calls.append(job)
        compiling.set()
        assert waiting.wait(60)
        return compiled(job, progress)

    def say(line: str) -> None:
        if "another process is compiling" in line:
            waiting.set()

    monkeypatch.setattr(finalize, "compile_engine", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(finalize.finalize, bundle, force=False)
        assert compiling.wait(60)
        second = pool.submit(finalize.finalize, bundle, force=False, progress=say)
        assert second.result(120) == first.result(120) == read_manifest(bundle)
    assert len(calls) == 1


def test_an_engine_that_computes_something_else_is_not_kept(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    data = other / "model.onnx.data"
    data.write_bytes(bytes(reversed(data.read_bytes())))

    def wrong(job: Job, progress: Any) -> Built:
        return Built(TITLE + str(other / "model.onnx").encode(), VERSION, 1.0)

    before = contents(bundle)
    monkeypatch.setattr(finalize, "compile_engine", wrong)
    with pytest.raises(GateFailed, match="the engine misses the 16-bit gate that its graph passed"):
        finalize.finalize(bundle)
    assert contents(bundle) == before


def test_compiling_again_loses_nothing_until_it_is_better(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finalize.finalize(bundle)
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    data = other / "model.onnx.data"
    data.write_bytes(bytes(reversed(data.read_bytes())))
    before = contents(bundle)
    worse = Built(TITLE + str(other / "model.onnx").encode(), VERSION, 2.0)
    monkeypatch.setattr(finalize, "compile_engine", lambda job, progress: worse)
    with pytest.raises(GateFailed):
        finalize.finalize(bundle)
    assert contents(bundle) == before
    same = TITLE + str(bundle / "model.onnx").encode()
    monkeypatch.setattr(finalize, "compile_engine", lambda *_: Built(same, VERSION, 3.0))
    again = finalize.finalize(bundle)
    assert again.engines[0].build_seconds == 3.0
    assert len(again.engines) == len(first.engines) == 1
    assert [*(bundle / "engines").iterdir()] == [bundle / again.engines[0].file]


def test_a_tampered_engine_is_neither_run_nor_in_the_way(bundle: Path, orin: FakeCuda) -> None:
    path = bundle / finalize.finalize(bundle).engines[0].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"X")
    with pytest.raises(BadBundle, match="does not match its SHA-256"):
        edgelm.load(bundle)
    finalize.finalize(bundle)
    assert path.read_bytes() == whole


def test_an_engine_from_elsewhere_needs_a_word_of_trust(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finalize.finalize(bundle)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(BadBundle, match="native code that runs with your rights; compile it here"):
        edgelm.load(bundle)
    from edgelm.export.cli import main

    assert main(["--trust", str(bundle)]) == 0
    edgelm.load(bundle).close()


def rewritten(folder: Path, **changes: Any) -> Manifest:
    manifest = msgspec.structs.replace(read_manifest(folder), **changes)
    (folder / "bundle.json").write_bytes(msgspec.json.encode(manifest))
    return manifest


def test_another_gpu(bundle: Path, orin: FakeCuda) -> None:
    orin.sm = 89
    with pytest.raises(BadBundle, match=r"is for jetson-agx-orin-64gb \(sm_87\), this .* sm_89"):
        finalize.finalize(bundle)


def test_a_tensorrt_that_is_too_old_for_the_dialect(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = FakeTensorRT(orin, "10.3.0.30", chunk=128)
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(BadBundle, match=r"tensorrt 10\.3\.0\.30 compiles the decomposed dialect"):
        finalize.finalize(bundle)


def test_no_tensorrt(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackage, match=r"tensorrt is not installed .* it comes with JetPack"):
        finalize.finalize(bundle)


def test_too_little_memory(bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = msgspec.structs.replace(detect(), available_bytes=100_000_000)
    monkeypatch.setattr(finalize, "detect", lambda: machine)
    monkeypatch.setattr(finalize, "read_swaps", list)
    with pytest.raises(
        DoesNotFit, match=r"needs about .* of memory, 100\.0 MB are available; close"
    ):
        finalize.finalize(bundle)


def test_too_little_memory_but_swap(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = build_peak("tensorrt", [read_manifest(bundle).weight_bytes])
    machine = msgspec.structs.replace(detect(), available_bytes=peak - 1)
    monkeypatch.setattr(finalize, "detect", lambda: machine)
    monkeypatch.setattr(finalize, "read_swaps", lambda: [SwapArea("/swapfile", 8 * 10**9, 0)])
    lines: list[str] = []
    assert not finalize.finalize(bundle, progress=lines.append).pending
    assert "are available, and 8.00 GB of swap: it will swap" in lines[0]


def test_a_tampered_graph_is_not_compiled(bundle: Path, orin: FakeCuda) -> None:
    data = bundle / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"X")
    with pytest.raises(BadBundle, match=r"model\.onnx\.data does not match its SHA-256"):
        finalize.finalize(bundle)


def test_a_bundle_that_needs_no_engine(tiny_chat: Path, tmp_path: Path) -> None:
    export_model(tiny_chat, tmp_path / "cpu", precision="int8")
    with pytest.raises(BadInput, match="runs on onnxruntime, which needs no compiled engine"):
        finalize.finalize(tmp_path / "cpu")


def test_an_engine_that_nobody_knows(bundle: Path) -> None:
    unknown = msgspec.structs.replace(read_manifest(bundle).engine, name="warp-drive")
    manifest = rewritten(bundle, engine=unknown)
    with pytest.raises(BadBundle, match="is for the engine 'warp-drive', which this edgelm"):
        open_session(bundle, manifest, capacity=64)


def test_threads_are_for_the_cpu(bundle: Path) -> None:
    with pytest.raises(BadInput, match="threads is 2, but tensorrt runs on the GPU; omit it"):
        open_session(bundle, read_manifest(bundle), capacity=64, threads=2)


def test_loading_compiles_only_when_asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadBundle, match=r"is not compiled yet; compile it: .*compile_engine=True"):
        edgelm.load(bundle)
    assert read_manifest(bundle).pending
    asked: list[Path] = []
    monkeypatch.setattr(finalize, "finalize", lambda folder, **_: asked.append(folder))
    with pytest.raises(BadBundle, match="is not compiled yet"):
        edgelm.load(bundle, compile_engine=True)  # the stand-in compiles nothing
    assert asked == [bundle]
