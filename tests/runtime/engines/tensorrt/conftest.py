"""A bundle in each dialect that TensorRT compiles, and the machine that runs it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgelm.bundle import EngineFile
from edgelm.bundle.file_names import ENGINES
from edgelm.checkpoint.source import Checkpoint
from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.trust import trust
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, DialectName, build_session, cpu_engine, cpu_session
from tests.runtime.engines.tensorrt.device import ENGINE, Device, Source
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT

# Whole graphs, whose cache is written in place or appended to; and segments of them.
SOURCES = [("standard", 1), ("decomposed", 1), ("standard", 3), ("decomposed", 64)]


def build_source(
    checkpoint: Checkpoint,
    folder: Path,
    dialect: DialectName,
    segments: int,
    *,
    batch: bool = False,
) -> Source:
    """A bundle's graph and an engine for each of its parts."""
    with build_session(
        checkpoint, folder, dialect=dialect, segments=segments, batch=batch
    ) as session:
        graph = cpu_engine(session)._graph
    (folder / ENGINES).mkdir()
    files = [ENGINE.file, *(f"{ENGINES}/{number}.engine" for number in range(1, len(graph.parts)))]
    for file, part in zip(files, graph.parts, strict=True):
        (folder / file).write_bytes(TITLE + str(folder / part.file).encode())
        trust(file_sha256(folder / file))
    later = tuple(EngineFile(file, f"{file}.cache") for file in files[1:])
    return Source(folder, graph, checkpoint.spec, replace(ENGINE, later_segments=later))


@pytest.fixture(scope="package", params=SOURCES, ids=lambda one: f"{one[0]}-{one[1]}")
def source(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Source:
    """A bundle's graph and an engine for each of its parts."""
    dialect: DialectName
    dialect, segments = request.param
    folder = tmp_path_factory.mktemp(f"trt-{dialect}")
    return build_source(tiny("qwen3").checkpoint, folder, dialect, segments)


@pytest.fixture
def device(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with open_device(source, monkeypatch) as opened:
        yield opened


@contextmanager
def open_device(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A machine with a GPU and TensorRT of our own, and ONNX Runtime as its reference."""
    driver = FakeCuda()
    library = FakeTensorRT(driver, ENGINE.version, chunk=CHUNK)
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    folder, graph = source.folder, source.graph
    with cpu_session(folder, graph, capacity=CONTEXT, threads=1) as reference:
        yield Device(folder, graph, source.spec, driver, library, reference, source.engine)
