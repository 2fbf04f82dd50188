"""Batches on the engine for CUDA: which runs are recorded, and which are split again."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.errors import BadBundle, DoesNotFit
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.batched_steps import BatchedSteps
from edgelm.runtime.engines.onnxruntime.cuda import bound_step, gpu_neighbors
from edgelm.runtime.engines.onnxruntime.cuda.gpu_neighbors import GpuNeighbors
from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine
from edgelm.runtime.engines.onnxruntime.run_times import RunTimes
from edgelm.runtime.engines.session import Logits
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, build_session, cpu_engine
from tests.runtime.cpu_as_cuda import use_cpu_as_cuda

TOKENS = np.random.default_rng(1).integers(3, 128, (3, CONTEXT))


@pytest.fixture
def three(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[EngineSession]]:
    """Sequences whose caches begin with 4 rows."""
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with build_session(tiny("llama").checkpoint, tmp_path) as session:
        graph = cpu_engine(session)._graph
    use_cpu_as_cuda(monkeypatch)
    engine = OrtCudaEngine(tmp_path, graph, capacity=CONTEXT, prefill_chunk=CHUNK)
    sessions = [EngineSession(engine)]
    sessions += [sessions[0].sibling() for _ in range(2)]
    yield sessions
    for session in sessions:
        session.close()


def step(sessions: list[EngineSession], *who: int) -> list[Logits]:
    given = [int(TOKENS[n, sessions[n].length]) for n in who]
    return EngineSession.advance_each([sessions[n] for n in who], given)


@pytest.fixture
def graph_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CUDA graph of each binding."""
    used: list[str] = []
    options = bound_step.run_options

    def note(graph_id: str) -> Any:
        used.append(graph_id)
        return options(graph_id)

    monkeypatch.setattr(bound_step, "run_options", note)
    return used


def test_each_group_of_neighbors_is_recorded_once(
    three: list[EngineSession], graph_ids: list[str]
) -> None:
    for _ in range(3):
        step(three, 0, 1, 2)
        step(three, 1)
    assert graph_ids == ["1", "2", "3", "4"], "two groups, with 4 and with 8 rows"


def test_a_graph_is_recorded_for_the_whole_cache(three: list[EngineSession]) -> None:
    """Else one that is recorded with the first tokens would read no others."""
    step(three, 0, 1)
    step(three, 0, 1)
    batch = three[0].engine.batch
    assert batch is not None
    assert isinstance(batch.runs, BatchedSteps)
    neighbors = batch.runs._runs
    assert isinstance(neighbors, GpuNeighbors)
    [bound] = neighbors._bound.values()
    assert bound.step._inputs["total_length"].numpy() == neighbors._pool.memory.rows == 4
    assert bound.inputs["total_length"] == 2


def test_errors_of_a_run_are_edgelms(
    three: list[EngineSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = 10**6  # the vocabulary
    with pytest.raises(BadBundle, match="ONNX Runtime cannot run this bundle's graph with CUDA: "):
        EngineSession.advance_each(three[:2], [beyond, beyond])
    monkeypatch.setattr(bound_step, "lacks_memory", lambda error: "indices" in str(error))
    with pytest.raises(DoesNotFit, match=r"the GPU has not enough memory for this run: .*ind"):
        EngineSession.advance_each(three[:2], [beyond, beyond])


def test_the_first_run_of_neighbors_is_not_measured(
    three: list[EngineSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is bound and recorded, which takes far longer than to run it."""
    measured: list[int] = []
    monkeypatch.setattr(RunTimes, "add", lambda self, size, _: measured.append(size))
    for _ in range(4):
        step(three, 0, 1, 2)
        step(three, 1)
    assert measured == [3, 1, 3, 1], "of eight runs, four were the first ones of 4 or of 8 rows"


def test_beyond_a_number_of_graphs_runs_are_not_recorded(
    three: list[EngineSession], graph_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_neighbors, "_MAX_GRAPHS", 1)
    alone = [three[0].advance(TOKENS[0, at : at + 1])[0].copy() for at in range(4)]
    graph_ids.clear()
    three[0].rewind(0)
    rows = [step(three, 0, 1)[0][0] for _ in range(2)]
    rows += [step(three, 0, 1, 2)[0][0] for _ in range(2)]
    assert [graph_id == "-1" for graph_id in graph_ids] == [False, True]
    np.testing.assert_allclose(rows, alone, atol=1e-5 * np.abs(alone).max())


def test_a_batch_that_is_slower_than_single_runs_is_split(
    three: list[EngineSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with kernels that read, or dequantize, the weights once for each row."""
    sizes: Counter[int] = Counter()
    seconds = {1: 1.0, 3: 3.5}
    real = GpuNeighbors.run

    def count(self: GpuNeighbors, first: int, tokens: Any, *given: Any) -> Logits:
        sizes[len(tokens)] += 1
        return real(self, first, tokens, *given)

    plainly = RunTimes.add
    monkeypatch.setattr(GpuNeighbors, "run", count)
    monkeypatch.setattr(RunTimes, "add", lambda self, size, _: plainly(self, size, seconds[size]))
    alone = [three[0].advance(TOKENS[0, at : at + 1])[0].copy() for at in range(20)]
    three[0].rewind(0)
    rows = [step(three, 0, 1, 2)[0][0] for _ in range(20)]
    # Five of its runs are measured, and none of the first ones with 4, 8 and 16 rows.
    assert sizes[3] < 10 < sizes[1]
    np.testing.assert_allclose(rows, alone, atol=1e-5 * np.abs(alone).max())


def test_siblings_have_their_runs_and_caches_in_common(three: list[EngineSession]) -> None:
    batches = [session.engine.batch for session in three]
    assert all(batch is not None for batch in batches)
    assert len({id(batch.runs) for batch in batches if batch}) == 1
    assert [batch.place for batch in batches if batch] == [0, 1, 2]
    assert isinstance(batches[0] and batches[0].runs, BatchedSteps)
    assert three[0].cache_bytes == three[1].cache_bytes


def test_an_adapter_is_refused(three: list[EngineSession]) -> None:
    adapter = LoadedAdapter("poet", "", {})
    with pytest.raises(Exception, match="takes no adapters"):
        three[0].use_adapter(adapter)
