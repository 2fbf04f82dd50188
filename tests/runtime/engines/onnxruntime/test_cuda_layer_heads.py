"""The engine for CUDA where layers have heads of their own, or the keys of another layer.

Gemma 3n and 4, and students of Puzzle; the CPU is in the GPU's place.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgelm.bundle import GraphContract
from edgelm.checkpoint.source import open_checkpoint
from edgelm.quantize.precision import PRECISIONS
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import flat
from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine
from tests.checkpoints.own_sizes import FEWER_HEADS, cut, save_student
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, build_session, cpu_engine
from tests.runtime.cpu_as_cuda import use_cpu_as_cuda

TOKENS = np.random.default_rng(0).integers(3, 119, CONTEXT)
Rows = npt.NDArray[np.float32]


STUDENT = "student"
# Heads of the layers with a cache, keys by channels, and whether other layers read some.
MODELS: dict[str, tuple[list[tuple[int, int]], bool]] = {
    "gemma3n": ([(2, 16)] * 4, True),
    "gemma4": ([(2, 16), (2, 16), (2, 32)], True),
    "gemma4-512": ([(2, 16), (2, 16), (2, 512)], True),
    "gemma4-dense": ([*[(2, 16), (2, 16), (1, 32)] * 2, (1, 32)], False),
    STUDENT: ([(1, 16), (1, 16), (2, 16)], False),
}


class Written(NamedTuple):
    """A graph, and the logits [tokens, vocabulary] of Transformers for all tokens."""

    folder: Path
    graph: GraphContract
    expected: Rows
    heads: list[tuple[int, int]]
    shares: bool

    def engine(self) -> OrtCudaEngine:
        return OrtCudaEngine(self.folder, self.graph, capacity=CONTEXT, prefill_chunk=CHUNK)

    def assert_right(self, ours: Rows, first: int, tolerance: float = 1e-4) -> None:
        """Whether these are the logits from a token on."""
        theirs = self.expected[first : first + len(ours)]
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(self.expected).max()


def write(name: str, calm: TinyFactory, folder: Path, activations: Any) -> Written:
    if name == STUDENT:
        model = cut(calm("qwen3").hf, FEWER_HEADS)
        checkpoint = open_checkpoint(save_student(model, folder / "source"))
    else:
        model, checkpoint = calm(name).hf, calm(name).checkpoint
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    with build_session(
        checkpoint,
        folder / "graph",
        PRECISIONS[activations],
        activations=activations,
        batch=True,
    ) as session:
        graph = cpu_engine(session)._graph
    return Written(folder / "graph", graph, expected, *MODELS[name])


@pytest.fixture(scope="module", params=MODELS)
def written(
    request: pytest.FixtureRequest, calm: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    return write(request.param, calm, tmp_path_factory.mktemp(request.param), "fp32")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, and caches that grow from 4 rows on."""
    use_cpu_as_cuda(monkeypatch)
    monkeypatch.setattr(growth, "MIN_ROWS", 4)


@pytest.fixture
def session(written: Written) -> Iterator[EngineSession]:
    with EngineSession(written.engine()) as session:
        yield session


def steps(session: EngineSession, count: int) -> Rows:
    """Logits of decoding the next tokens, one by one."""
    first = session.length
    return np.concatenate(
        [session.advance(TOKENS[at : at + 1]).copy() for at in range(first, first + count)]
    )


def test_each_layer_has_a_cache_of_its_own_shape(written: Written, session: EngineSession) -> None:
    session.advance(TOKENS[:20])
    engine = session.engine
    assert isinstance(engine, OrtCudaEngine)
    tensors = flat(engine._cache)
    assert [tensor.shape for tensor in tensors] == [
        (1, keys, 32, dim) for keys, dim in written.heads for _ in ("key", "value")
    ]
    assert session.cache_bytes == sum(2 * 4 * keys * 32 * dim for keys, dim in written.heads)
    ends = [(tensor.address, tensor.address + tensor.nbytes) for tensor in tensors]
    assert all(a[1] <= b[0] for a, b in zip(sorted(ends), sorted(ends)[1:], strict=False))


def test_prompts_steps_and_rewinding(written: Written, session: EngineSession) -> None:
    written.assert_right(session.advance(TOKENS[:21], logits=21), 0)  # in two runs
    written.assert_right(steps(session, 15), 21)
    written.assert_right(session.advance(TOKENS[36:], logits=28), 36)
    for length in (30, 9, 1, 0):
        session.rewind(length)
        session.advance(TOKENS[::-1][:3])  # others in their place
        session.rewind(length)
        written.assert_right(steps(session, 4), length)
        written.assert_right(session.advance(TOKENS[length + 4 :][:20], logits=20), length + 4)


def test_sequences_beside_each_other(written: Written, session: EngineSession) -> None:
    others = [session.sibling() for _ in range(2)]
    sessions, lengths = [session, *others], (3, 17, 9)
    for one, length in zip(sessions, lengths, strict=True):
        one.advance(TOKENS[:length])
    assert written.graph.takes_batches is not written.shares
    for step in range(10):
        given = [TOKENS[length + step : length + step + 1] for length in lengths]
        if written.shares:  # one sequence in a run
            found = [one.advance(token) for one, token in zip(sessions, given, strict=True)]
        else:
            found = EngineSession.advance_each(sessions, [int(token[0]) for token in given])
        for rows, length in zip(found, lengths, strict=True):
            written.assert_right(rows, length + step)
    others[0].close()
    written.assert_right(steps(others[1], 5), 19)
    written.assert_right(steps(session, 5), 13)
    others[1].close()


def test_a_saved_state_and_a_shared_beginning(written: Written, session: EngineSession) -> None:
    session.advance(TOKENS[:30])
    state = session.state(24)
    assert [rows.shape for rows in session.engine.read_rows(24)] == [
        (1, keys, 24, dim) for keys, dim in written.heads for _ in ("key", "value")
    ]
    with session.sibling() as sibling:
        sibling.restore(TOKENS[:24].tolist(), state)
        written.assert_right(steps(sibling, 6), 24)
    with EngineSession(written.engine()) as other:  # after the end of the process
        other.restore(TOKENS[:24].tolist(), state)
        written.assert_right(other.advance(TOKENS[24:40], logits=16), 24)
    written.assert_right(steps(session, 3), 30)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4-512", STUDENT])
def test_in_16_bits_as_on_a_gpu(name: str, calm: TinyFactory, tmp_path: Path) -> None:
    written = write(name, calm, tmp_path, "fp16")
    with EngineSession(written.engine()) as session:
        assert session.engine.read_rows(0)[0].dtype == np.uint16
        written.assert_right(session.advance(TOKENS[:30], logits=30), 0, 0.02)
        written.assert_right(steps(session, 20), 30, 0.02)
