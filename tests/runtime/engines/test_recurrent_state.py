"""Sequences of a hybrid: what its layers remember follows every return to earlier tokens."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgelm.bundle import StateTensor
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.recurrent_state import HostState, SnapshotHistory
from edgelm.runtime.engines.session import Cancelled
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import CHUNK, build_session, cpu_engine

TOKENS = np.random.default_rng(0).integers(3, 128, 60)
ONE = StateTensor(0, "conv", "float32", (2, 4), "past", "present")


@pytest.fixture(
    scope="module", params=["lfm2", "qwen3.5", "granite-hybrid", "nemotron-h", "falcon-h1"]
)
def source(request: pytest.FixtureRequest, tiny: TinyFactory) -> Tiny:
    return tiny(request.param)


@pytest.fixture(scope="module")
def loaded(source: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSession]:
    with build_session(source.checkpoint, tmp_path_factory.mktemp("hybrid")) as session:
        yield session


@pytest.fixture
def session(loaded: EngineSession) -> EngineSession:
    loaded.rewind(0)
    return loaded


def turns(session: EngineSession) -> list[npt.NDArray[np.float32]]:
    """Two turns: a prompt and an answer token by token, each; the logits of every answer."""
    answers = []
    for start, middle, end in ((0, 19, 25), (25, 44, 50)):
        session.advance(TOKENS[start:middle])
        rows = [session.advance(TOKENS[at : at + 1]).copy() for at in range(middle, end)]
        answers.append(np.concatenate(rows))
    return answers


@pytest.mark.parametrize("cut", [1, 15, 16, 19, 22, 25, 30, 44, 50], ids="at-{}".format)
def test_after_a_return_as_if_nothing_had_been_there(session: EngineSession, cut: int) -> None:
    turns(session)
    session.rewind(cut)
    other = TOKENS[::-1][:7].copy()
    ours = session.advance(other, logits=7).copy()
    session.rewind(0)
    session.advance(TOKENS[:cut])
    expected = session.advance(other, logits=7)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("turn", [0, 25])
def test_a_turn_again_is_equal_bit_for_bit(session: EngineSession, turn: int) -> None:
    first = turns(session)
    session.rewind(turn)
    if turn == 0:
        again = turns(session)
    else:
        session.advance(TOKENS[25:44])
        rows = [session.advance(TOKENS[at : at + 1]).copy() for at in range(44, 50)]
        again = [first[0], np.concatenate(rows)]
    for ours, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_cancelled_prefill_leaves_the_state_as_it_was(session: EngineSession) -> None:
    session.advance(TOKENS[:10])
    session.cancel_when(lambda: True)
    with pytest.raises(Cancelled):
        session.advance(TOKENS[10 : 10 + 2 * CHUNK])
    session.cancel_when(None)
    assert session.length == 10
    ours = session.advance(TOKENS[50:55], logits=5).copy()
    session.rewind(0)
    session.advance(TOKENS[:10])
    np.testing.assert_allclose(ours, session.advance(TOKENS[50:55], logits=5), atol=1e-5)


@pytest.mark.parametrize("length", [12, 20], ids=["shorter", "whole"])
def test_a_state_given_to_another_sequence(session: EngineSession, length: int) -> None:
    session.advance(TOKENS[:20])
    state = [array.copy() for array in session.state(length)]
    with session.sibling() as other:
        other.advance(TOKENS[30:40])
        other.restore(TOKENS[:length].tolist(), state)
        ours = other.advance(TOKENS[20:23], logits=3).copy()
    session.rewind(length)
    expected = session.advance(TOKENS[20:23], logits=3)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_the_state_is_part_of_the_memory(session: EngineSession, source: Tiny) -> None:
    spec = source.checkpoint.spec
    engine = cpu_engine(session)
    rows = spec.kv_bytes_per_token(4) * engine.capacity
    assert session.cache_bytes == rows + spec.state_bytes(4)  # written in place


def test_one_operator_reads_each_state(session: EngineSession) -> None:
    engine = cpu_engine(session)
    model = onnx.load(engine._folder / "model.onnx", load_external_data=False)
    readers = Counter(name for node in model.graph.node for name in node.input)
    assert {readers[one.past] for one in engine._graph.cache.states} == {1}


def test_in_place_as_with_memory_of_its_own(
    source: Tiny, tmp_path: Path, session: EngineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = turns(session)
    apart = HostState(cpu_engine(session)._graph.cache.states)
    monkeypatch.setattr("edgelm.runtime.engines.onnxruntime.ort._host_state", lambda _: apart)
    with build_session(source.checkpoint, tmp_path) as other:
        assert cpu_engine(other)._state is apart
        expected = turns(other)
    np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(expected))


def test_plain_operators_write_next_to_the_state_that_they_read(
    source: Tiny, tmp_path: Path
) -> None:
    with build_session(source.checkpoint, tmp_path, dialect="standard") as session:
        state = cpu_engine(session)._state
        assert state is not None
        pairs = zip(state.past, state.present, strict=True)
        assert not any(np.shares_memory(past, present) for past, present in pairs)
        session.advance(TOKENS[:9])
        steps = [session.advance(TOKENS[at : at + 1]).copy() for at in range(9, 12)]
        session.rewind(0)
        expected = session.advance(TOKENS[:12], logits=3)
        np.testing.assert_allclose(np.concatenate(steps), expected, atol=1e-4)


def test_snapshots_thin_out_and_keep_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.runtime.engines.recurrent_state._MAX_BYTES", 0)
    state = HostState((ONE,))
    history = SnapshotHistory(state)
    for length in range(16, 16 * 40, 16):
        state.past[0][:] = length
        history.advanced(length, decoded=False)
    assert history.return_to(16 * 39) == 16 * 39
    assert history.return_to(20) == 16
    assert float(state.past[0].max()) == 16
    assert history.return_to(10) == 0
    assert not state.past[0].any()


def test_decoding_takes_few_snapshots() -> None:
    state = HostState((ONE,))
    history = SnapshotHistory(state)
    for length in range(1, 200):
        state.past[0][:] = length
        history.advanced(length, decoded=True)
    assert history.return_to(190) == 128
