"""Engines of TensorRT-RTX and TensorRT on the GPU, against the same graph in fp32 on the CPU."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from edgelm.bundle import CompiledEngine
from edgelm.devices.tensorrt_versions import RTX, TENSORRT, release_of
from edgelm.errors import UnknownName
from edgelm.quantize.precision import Fp16, Int4, WeightPrecision
from edgelm.runtime.engines.cuda import Gpu, free_memory
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Session
from edgelm.runtime.engines.tensorrt.execution_slot import ExecutionSlot
from edgelm.runtime.engines.tensorrt.loaded_engine import LoadedEngine
from edgelm.runtime.engines.tensorrt.trt_engine import TrtEngine
from tests.export.graphs import CHUNK, DialectName, cpu_session
from tests.gpu.conftest import SMOLLM2, Source
from tests.gpu.graphs import KL_16_BIT, Bundle, compile_here, divergence, write_graph

pytestmark = pytest.mark.gpu

CONTEXT = 64
# TensorRT has no zero points.
_PRECISIONS: dict[str, WeightPrecision] = {
    "fp16": Fp16(),
    "int4": Int4(group_size=64, symmetric=True),
}


class Case(NamedTuple):
    """What is compiled, and how."""

    model: str
    family: str = RTX
    dialect: DialectName = "standard"
    precision: str = "fp16"
    profiles: int = 1
    segments: int = 1


CASES = [
    Case("llama"),
    Case("llama", profiles=2),
    Case("qwen3"),
    Case("qwen3", dialect="decomposed"),
    Case("mistral"),
    Case("gemma2", dialect="decomposed", profiles=2),
    Case(SMOLLM2),
    Case(SMOLLM2, precision="int4"),
    Case(SMOLLM2, dialect="decomposed"),
    Case(SMOLLM2, precision="int4", segments=4),
    Case("gemma2", dialect="decomposed", segments=64),
    Case("qwen3", TENSORRT, profiles=2),
    Case("qwen3", TENSORRT, "decomposed", profiles=2),
    Case(SMOLLM2, TENSORRT, profiles=2),
    Case(SMOLLM2, TENSORRT, "decomposed", profiles=2),
    Case(SMOLLM2, TENSORRT, profiles=2, segments=4),
]


@dataclass
class Compiled:
    """An engine, the tokens to run it on, and what the CPU says of them."""

    bundle: Bundle
    engine: CompiledEngine
    tokens: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float32]

    def load(self) -> TrtEngine:
        folder, manifest = self.bundle
        return TrtEngine(folder, manifest.graph, self.engine, capacity=CONTEXT, prefill_chunk=CHUNK)

    def open(self) -> Session:
        return EngineSession(self.load())


@pytest.fixture(scope="module")
def compiled(
    gpu: Gpu, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Compiled]:
    @cache
    def make(case: Case) -> Compiled:
        module = {RTX: "tensorrt_rtx", TENSORRT: "tensorrt"}[case.family]
        try:
            version = str(importlib.import_module(module).__version__)
        except ImportError as error:
            pytest.skip(f"needs {case.family}: {error}")
        if case.dialect not in release_of(case.family, version).dialects:
            pytest.skip(f"{case.family} {version} does not compile the {case.dialect} dialect")
        checkpoint, tokens = source(case.model)
        folder = tmp_path_factory.mktemp("engine")

        def write(name: str, activations: Any) -> Bundle:
            return write_graph(
                checkpoint,
                folder / name,
                case.dialect,
                precision=_PRECISIONS[case.precision],
                activations=activations,
                context=CONTEXT,
                segments=case.segments if name == "gpu" else 1,
            )

        bundle = write("gpu", "fp16")
        try:
            engine = compile_here(bundle, case.family, gpu, profiles=case.profiles)
        except UnknownName as error:
            pytest.skip(str(error))
        exact = write("cpu", "fp32")
        with cpu_session(exact.folder, exact.manifest.graph, capacity=CONTEXT) as reference:
            expected = reference.advance(tokens, logits=len(tokens))
        return Compiled(bundle, engine, tokens, expected)

    return make


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request: pytest.FixtureRequest, compiled: Callable[[Case], Compiled]) -> Compiled:
    return compiled(request.param)


@pytest.fixture
def session(case: Compiled) -> Iterator[Session]:
    with case.open() as session:
        yield session


def steps(session: Session, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits of decoding token by token; a row is valid until the next."""
    rows = [session.advance(tokens[at : at + 1]).copy() for at in range(len(tokens))]
    return np.concatenate(rows)


def test_prefill_is_that_of_the_cpu(session: Session, case: Compiled) -> None:
    ours = session.advance(case.tokens, logits=len(case.tokens))
    assert divergence(ours, case.expected) <= KL_16_BIT


def test_decoding_is_that_of_the_cpu(session: Session, case: Compiled) -> None:
    assert divergence(steps(session, case.tokens), case.expected) <= KL_16_BIT


def test_prefill_then_decoding_then_prefill(session: Session, case: Compiled) -> None:
    rows = [session.advance(case.tokens[:20], logits=3).copy()]
    rows.append(steps(session, case.tokens[20:30]))
    rows.append(session.advance(case.tokens[30:47], logits=17).copy())
    rows.append(steps(session, case.tokens[47:]))
    assert divergence(np.concatenate(rows), case.expected[17:]) <= KL_16_BIT


@pytest.mark.parametrize("length", [0, 1, 16, 33])
def test_rewinding_forgets(session: Session, case: Compiled, length: int) -> None:
    session.advance(case.tokens[: max(length, 1)])
    session.rewind(length)
    steps(session, case.tokens[::-1][:5].copy())
    session.advance(case.tokens[::-1][:20].copy())
    session.rewind(length)
    ours = steps(session, case.tokens[length : length + 8])
    assert divergence(ours, case.expected[length : length + 8]) <= KL_16_BIT


def test_a_cuda_graph_changes_nothing(case: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode() -> npt.NDArray[np.float32]:
        with case.open() as session:
            session.advance(case.tokens[:10])
            return steps(session, case.tokens[10:40])

    replayed = decode()
    monkeypatch.setattr(ExecutionSlot, "can_be_recorded", lambda self, stream: False)
    # TensorRT-RTX replays graphs of its own making, if it is told to.
    plainly = LoadedEngine._runtime_config
    monkeypatch.setattr(
        LoadedEngine, "_runtime_config", lambda self, decodes: plainly(self, decodes=False)
    )
    assert divergence(replayed, decode()) <= KL_16_BIT / 10


def test_tensorrt_decodes_in_a_cuda_graph(case: Compiled) -> None:
    if case.engine.name == RTX:
        pytest.skip("TensorRT-RTX makes its CUDA graphs itself, and does not show them")
    engine = case.load()
    with EngineSession(engine) as session:
        steps(session, case.tokens[:2])
        assert engine._graph is not None


def test_kernels_are_kept(case: Compiled) -> None:
    if not case.engine.runtime_cache:
        pytest.skip("TensorRT compiles no kernels while it runs")
    path = case.bundle.folder / case.engine.runtime_cache
    rows = []
    for _ in range(2):
        with case.open() as session:
            rows.append(steps(session, case.tokens[:4]))
        assert path.stat().st_size > 0
    assert divergence(rows[1], rows[0]) <= KL_16_BIT / 10


def test_closing_gives_memory_back(case: Compiled) -> None:
    def use() -> int:
        with case.open() as session:
            steps(session, case.tokens[:4])
        return free_memory()[0]

    use()  # the first time CUDA and TensorRT keep something for good
    after = [use() for _ in range(3)]
    assert max(after) - min(after) <= 32_000_000
