"""Compiling a graph in segments: one by one, resumed after a kill, run in a row, checked as one."""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import edgelm
from edgelm.bundle import read_manifest
from edgelm.devices.detection.detect import detect
from edgelm.devices.planner.memory.build_memory import build_peak
from edgelm.errors import BadBundle, DoesNotFit, GateFailed
from edgelm.export.pipeline import export_model
from edgelm.runtime.engines import cuda, finalize
from edgelm.runtime.engines.tensorrt.build import Built, Job
from edgelm.runtime.engines.trust import is_trusted
from tests.folders import contents
from tests.forks import run_forked
from tests.runtime.engines.test_finalize import VERSION
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT

SEGMENTS = 4


@pytest.fixture(scope="module")
def pending(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jetson") / "bundle"
    manifest = export_model(
        tiny_chat, folder, target="jetson-orin", precision="fp16", segments=SEGMENTS
    )
    assert len(manifest.graph.segments) == SEGMENTS
    return folder


@pytest.fixture
def bundle(pending: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pending, tmp_path / "bundle")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    driver = FakeCuda(sm=87)
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(driver, VERSION, chunk=128))
    return driver


@pytest.fixture
def jobs(orin: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What the compiler was given."""
    given: list[Job] = []

    def compiled(job: Job, progress: Callable[[str], None]) -> Built:
        given.append(job)
        progress("compiling")
        return Built(TITLE + str(job.graph).encode(), VERSION, 2.0)

    monkeypatch.setattr(finalize, "compile_engine", compiled)
    return given


def test_segments_are_compiled_one_by_one_with_one_timing_cache(
    bundle: Path, jobs: list[Job]
) -> None:
    said: list[str] = []
    manifest = finalize.finalize(bundle, progress=said.append)
    [engine] = manifest.engines
    assert [job.graph.name for job in jobs] == [f"model-{n}.onnx" for n in range(1, SEGMENTS + 1)]
    assert len({job.timing_cache for job in jobs}) == 1
    assert jobs[0].timing_cache
    assert [line for line in said if "compiling" in line][2] == "segment 3 of 4: compiling"
    assert len(engine.files) == len(set(engine.files)) == SEGMENTS
    assert all(is_trusted(manifest.files[file].sha256) for file in engine.files)
    assert engine.build_seconds == 2.0 * SEGMENTS
    assert engine.gate is not None, "the row of segments passed the gate as one"
    assert engine.gate.passed


def test_it_runs_then(bundle: Path, jobs: list[Job]) -> None:
    finalize.finalize(bundle)
    with edgelm.load(bundle) as lm:
        ours = lm.generate("The miller", max_tokens=8, temperature=0)
    assert len(jobs) == SEGMENTS, "loading compiled nothing"
    assert len(ours.tokens) <= 8


def test_kill_9_in_the_third_segment_and_resume(bundle: Path, jobs: list[Job]) -> None:
    before = contents(bundle)
    code = run_forked("tests.runtime.die_finalizing", str(bundle), "model-3.onnx")
    assert code == -signal.SIGKILL
    assert len(contents(bundle)) == len(before) + 2, "two engines lie there"
    assert read_manifest(bundle).pending
    said: list[str] = []
    manifest = finalize.finalize(bundle, progress=said.append)
    assert [job.graph.name for job in jobs] == ["model-3.onnx", "model-4.onnx"]
    assert said[0].startswith("segment 1 of 4: taken from an interrupted build")
    assert {path.name for path in (bundle / "engines").iterdir()} == {
        Path(file).name for file in manifest.engines[0].files
    }
    edgelm.load(bundle).close()


def test_what_another_machine_compiled_is_not_taken(
    bundle: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_forked("tests.runtime.die_finalizing", str(bundle), "model-3.onnx")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    finalize.finalize(bundle)
    assert len(jobs) == SEGMENTS


def test_one_segment_s_engine_under_the_name_of_another_is_not_taken(
    bundle: Path, jobs: list[Job]
) -> None:
    """Both were compiled here, but which is which is a claim of the names."""
    run_forked("tests.runtime.die_finalizing", str(bundle), "model-3.onnx")
    first, second = sorted((bundle / "engines").iterdir())
    exchanged = second.read_bytes()
    second.write_bytes(first.read_bytes())
    first.write_bytes(exchanged)
    finalize.finalize(bundle)
    assert len(jobs) == SEGMENTS


def test_compiling_again_takes_nothing_of_the_finished_engine(
    bundle: Path, jobs: list[Job]
) -> None:
    finalize.finalize(bundle)
    finalize.finalize(bundle)
    assert len(jobs) == 2 * SEGMENTS
    assert len(list((bundle / "engines").iterdir())) == SEGMENTS


def test_segments_that_miss_the_gate_are_removed(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    data = other / "model.onnx.data"
    data.write_bytes(bytes(reversed(data.read_bytes())))

    def wrong(job: Job, progress: Any) -> Built:
        return Built(TITLE + str(other / job.graph.name).encode(), VERSION, 1.0)

    before = contents(bundle)
    monkeypatch.setattr(finalize, "compile_engine", wrong)
    with pytest.raises(GateFailed, match="misses the 16-bit gate"):
        finalize.finalize(bundle)
    assert contents(bundle) == before


def test_an_engine_of_a_segment_that_is_damaged_is_not_run(bundle: Path, jobs: list[Job]) -> None:
    file = bundle / finalize.finalize(bundle).engines[0].files[-1]
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    with pytest.raises(BadBundle, match="does not match its SHA-256"):
        edgelm.load(bundle)


def test_memory_that_is_enough_for_segments_only(
    bundle: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(bundle)
    segments = [one.weight_bytes for one in manifest.graph.segments]
    assert sum(segments) >= manifest.weight_bytes, "tables of positions count in each"
    peak = build_peak("tensorrt", segments)
    assert peak < build_peak("tensorrt", [manifest.weight_bytes])
    monkeypatch.setattr(finalize, "read_swaps", list)
    for available, fits in ((peak - 1, False), (peak, True)):
        machine = replace(detect(), available_bytes=available)
        monkeypatch.setattr(finalize, "detect", lambda machine=machine: machine)
        if fits:
            assert not finalize.finalize(bundle).pending
        else:
            with pytest.raises(DoesNotFit, match=r"needs about .* of memory in 4 segments"):
                finalize.finalize(bundle)
