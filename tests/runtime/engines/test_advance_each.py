"""Runs over several sequences: who takes part, growing, moving, errors.

On ONNX Runtime's CPU provider, and on the engine for CUDA with the CPU in the GPU's place.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgelm.bundle import GraphContract
from edgelm.errors import BadInput, ContextFull, DoesNotFit
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime import batched_steps
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, DialectName, build_session, cpu_engine, cpu_session
from tests.runtime.cpu_as_cuda import use_cpu_as_cuda

TOKENS = np.random.default_rng(7).integers(3, 128, (4, CONTEXT))
Row = npt.NDArray[np.float32]


class Graph(NamedTuple):
    """A graph that takes batches, and the engine that is to run it."""

    folder: Path
    contract: GraphContract
    engine: str

    def open(self, monkeypatch: pytest.MonkeyPatch) -> EngineSession:
        if self.engine == "cpu":
            return cpu_session(self.folder, self.contract, capacity=CONTEXT, threads=1)
        use_cpu_as_cuda(monkeypatch)
        return EngineSession(
            OrtCudaEngine(self.folder, self.contract, capacity=CONTEXT, prefill_chunk=CHUNK)
        )


ENGINES = [("ort", "cpu"), ("standard", "cpu"), ("ort", "cuda"), ("standard", "cuda")]


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def graph(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Graph:
    dialect: DialectName
    dialect, engine = request.param
    folder = tmp_path_factory.mktemp("batches")
    checkpoint = tiny("llama").checkpoint
    with build_session(checkpoint, folder, dialect=dialect, batch=True) as session:
        return Graph(folder, cpu_engine(session)._graph, engine)


@pytest.fixture
def four(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineSession]]:
    """Sequences whose caches begin with 4 rows, where they can grow."""
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with graph.open(monkeypatch) as first:
        sessions = [first, *(first.sibling() for _ in range(3))]
        yield sessions
        for session in sessions[1:]:
            session.close()


def engine_of(session: EngineSession) -> OrtEngine | OrtCudaEngine:
    """The engine, whose pool tests look at."""
    assert isinstance(session.engine, OrtEngine | OrtCudaEngine)
    return session.engine


@pytest.fixture(scope="module")
def expected(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> list[list[Row]]:
    """The logits behind each token of each sequence, by runs of one."""
    with build_session(tiny("llama").checkpoint, tmp_path_factory.mktemp("alone")) as session:
        rows = []
        for tokens in TOKENS:
            session.rewind(0)
            rows.append([session.advance(np.array([one]))[0].copy() for one in tokens])
        return rows


def step(sessions: list[EngineSession], who: Sequence[int], expected: list[list[Row]]) -> None:
    """Advance some of the sequences together, and check their logits."""
    lengths = [sessions[n].length for n in who]
    given = [int(TOKENS[n, at]) for n, at in zip(who, lengths, strict=True)]
    rows = EngineSession.advance_each([sessions[n] for n in who], given)
    for n, at, row in zip(who, lengths, rows, strict=True):
        check(row[0], expected[n][at])
        assert sessions[n].tokens == TOKENS[n, : at + 1].tolist()


def check(row: Row, expected: Row) -> None:
    assert is_near(row, expected)


def is_near(row: Row, expected: Row) -> bool:
    """Up to rounding, which differs with the place of rows in memory; AVX2 alone: 1.1e-5."""
    return bool(np.abs(row - expected).max() <= 5e-5 * np.abs(expected).max())


def test_sequences_join_leave_rewind_and_run_alone_in_between(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    step(four, [0, 1], expected)
    step(four, [2, 0, 1], expected)
    row = four[3].advance(TOKENS[3, :9], logits=1)  # a prefill, which grows all caches
    check(row[0], expected[3][8])
    step(four, [0, 1, 2, 3], expected)
    four[1].rewind(1)
    step(four, [3, 1], expected)
    check(four[0].advance(TOKENS[0, 3:4])[0], expected[0][3])
    step(four, [0, 1, 2, 3], expected)
    # Only the one that outgrows its rows is long; the others stay as they are.
    while four[2].length < 20:
        step(four, [2, 0] if four[0].length < 10 else [2], expected)
    step(four, [0, 1, 2, 3], expected)
    check(four[1].advance(TOKENS[1, four[1].length : 18])[0], expected[1][17])


def test_random_company(four: list[EngineSession], expected: list[list[Row]]) -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        who = random.permutation(4)[: random.integers(1, 5)].tolist()
        for n in who:
            if four[n].length >= CONTEXT - 1:
                four[n].rewind(int(random.integers(0, 5)))
        step(four, who, expected)


def test_sequences_that_are_not_neighbors_are_brought_together(
    four: list[EngineSession], expected: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = batched_steps.BatchedSteps._run_neighbors

    def count(
        self: batched_steps.BatchedSteps,
        group: list[int],
        given: list[tuple[int, int]],
        adapter: LoadedAdapter | None,
    ) -> Row:
        sizes.append(len(group))
        return real(self, group, given, adapter)

    monkeypatch.setattr(batched_steps.BatchedSteps, "_run_neighbors", count)
    step(four, [0, 1, 2, 3], expected)
    for _ in range(batched_steps._PATIENCE - 1):
        step(four, [3, 0, 2], expected)
    assert set(sizes[1:]) == {1, 2}
    sizes.clear()
    for _ in range(3):
        step(four, [3, 0, 2], expected)
    assert sizes == [3, 3, 3]
    step(four, [0, 1, 2, 3], expected)
    assert sizes[3:] == [4]


def test_what_others_compute_does_not_move_a_state_that_was_read(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    four[0].advance(TOKENS[0, :3])
    state = four[0].state(3)
    four[1].restore(TOKENS[0, :3].tolist(), state)
    four[2].advance(TOKENS[2, :30])  # moves all caches
    four[3].restore(TOKENS[0, :3].tolist(), four[1].state(3))
    for session in (four[0], four[1], four[3]):
        check(session.advance(TOKENS[0, 3:4])[0], expected[0][3])


def test_one_that_cannot_go_on_stops_the_run_and_changes_nobody(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    four[0].advance(TOKENS[0])
    with pytest.raises(ContextFull):
        EngineSession.advance_each(four[:2], [5, int(TOKENS[1, 0])])
    assert [session.length for session in four[:2]] == [CONTEXT, 0]
    four[3].close()
    with pytest.raises(BadInput, match="closed"):
        EngineSession.advance_each(four[1:], [1, 2, 3])
    step(four, [1, 2], expected)


def test_without_memory_to_grow_all_stay_as_they_were(
    graph: Graph,
    four: list[EngineSession],
    expected: list[list[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if graph.contract.cache.capacity is not None:
        pytest.skip("its cache has its full size from the start")
    rows = engine_of(four[0])._pool.memory.rows
    four[0].advance(TOKENS[0, :rows])
    four[1].advance(TOKENS[1, :2])

    def no_memory(*_: object) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", no_memory)
        patch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", no_memory)
        with pytest.raises(DoesNotFit, match=r"no memory for a cache|cache needs .* of GPU memory"):
            EngineSession.advance_each(four[:2], [int(TOKENS[0, rows]), int(TOKENS[1, 2])])
    assert [session.length for session in four[:2]] == [rows, 2]
    step(four, [0, 1], expected)


def test_a_place_that_was_given_back_is_used_again(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    four[1].advance(TOKENS[0, :30])
    four[1].close()
    before = engine_of(four[0])._pool.memory
    four[1] = four[0].sibling()
    assert engine_of(four[0])._pool.memory is before
    assert four[1].length == 0
    step(four, [0, 1, 2], expected)


def test_the_first_may_be_closed_before_the_others(
    graph: Graph, expected: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = graph.open(monkeypatch)
    others = [first.sibling() for _ in range(2)]
    first.close()
    step(others, [0, 1], expected)
    for session in others:
        session.close()


def test_a_sequence_that_holds_nan_spoils_no_other(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    for n in range(3):
        four[n].advance(TOKENS[n, :3])
    state = [array.copy() for array in four[1].state(3)]
    for keys in state[::2]:
        keys.view(np.float32)[:, :, 1] = np.nan
    four[1].restore(TOKENS[1, :3].tolist(), state)
    rows = EngineSession.advance_each(four[:3], [int(TOKENS[n, 3]) for n in range(3)])
    assert np.isnan(rows[1]).any()
    check(rows[0][0], expected[0][3])
    check(rows[2][0], expected[2][3])


def test_threads_on_siblings_without_turns(
    four: list[EngineSession], expected: list[list[Row]]
) -> None:
    """Sessions are used by threads of their own; each growth moves the others' caches."""
    wrong: list[object] = []

    def work(n: int) -> None:
        for at in range(CONTEXT):
            row = four[n].advance(TOKENS[n, at : at + 1])[0]
            if not is_near(row, expected[n][at]):
                wrong.append((n, at))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
