"""A bundle in each dialect that TensorRT compiles, and the machine that runs it."""

import sys
from collections.abc import Iterator

import pytest

from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.trust import trust
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, DialectName, build_session, cpu_engine, cpu_session
from tests.runtime.engines.tensorrt.device import ENGINE, Device, Source
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT


@pytest.fixture(scope="package", params=["standard", "decomposed"])
def source(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Source:
    """A bundle's graph: its cache is written in place, or appended to."""
    dialect: DialectName = request.param
    folder = tmp_path_factory.mktemp(f"trt-{dialect}")
    checkpoint = tiny("qwen3").checkpoint
    with build_session(checkpoint, folder, dialect=dialect) as session:
        graph = cpu_engine(session)._graph
    path = folder / ENGINE.file
    path.parent.mkdir()
    path.write_bytes(TITLE + str(folder / graph.file).encode())
    trust(file_sha256(path))
    return Source(folder, graph, checkpoint.spec)


@pytest.fixture
def device(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    driver = FakeCuda()
    library = FakeTensorRT(driver, ENGINE.version, chunk=CHUNK)
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    folder, graph = source.folder, source.graph
    with cpu_session(folder, graph, capacity=CONTEXT, threads=1) as reference:
        yield Device(folder, graph, source.spec, driver, library, reference)
