"""Layers that keep only their window compute what Hugging Face computes, far beyond the window."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgelm.errors import BadBundle
from edgelm.runtime.engines.engine_session import EngineSession
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import build_session, cpu_engine, cpu_session
from tests.slow import slow_but

CONTEXT = 128
TOKENS = np.random.default_rng(11).integers(3, 120, CONTEXT)
WINDOWED = (
    *("gemma2", "gemma3", "gemma4", "gpt-oss", "olmo3", "mistral", "qwen2-window", "exaone4"),
    *("gemma3n", "granite-swa"),
)
ROWS = 24  # a window of 8 and 16 more
Rows = npt.NDArray[np.float32]


@pytest.fixture(
    scope="module", params=slow_but(WINDOWED, ("gemma3", "gemma4", "gpt-oss", "mistral"))
)
def source(request: pytest.FixtureRequest, calm: TinyFactory) -> Tiny:
    return calm(request.param)


@pytest.fixture(scope="module")
def expected(source: Tiny) -> Rows:
    """Hugging Face's logits behind every token."""
    with torch.inference_mode():
        found: Rows = source.hf(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return found


@pytest.fixture(scope="module")
def loaded(source: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSession]:
    folder = tmp_path_factory.mktemp("windows")
    with build_session(
        source.checkpoint, folder, cuts_windows=True, chunk=CONTEXT, context=CONTEXT
    ) as session:
        yield session


@pytest.fixture
def session(loaded: EngineSession) -> EngineSession:
    loaded.rewind(0)
    loaded.engine.chunk = 16
    return loaded


def check(rows: Rows, expected: Rows) -> None:
    assert np.abs(rows - expected).max() <= 1e-4 * np.abs(expected).max()


def test_windowed_layers_keep_few_rows(session: EngineSession, source: Tiny) -> None:
    spec, engine = source.checkpoint.spec, cpu_engine(session)
    read = {layer.shares_kv_of for layer in spec.layers}
    for index, layer in zip(spec.cache_layers, engine._graph.cache.layers, strict=True):
        windowed = spec.layers[index].window is not None and index not in read
        assert layer.rows == (ROWS if windowed else None)
    assert any(layer.rows for layer in engine._graph.cache.layers)


@pytest.mark.parametrize("chunk", [CONTEXT, 40, 7], ids="chunk-{}".format)
def test_a_prompt(session: EngineSession, expected: Rows, chunk: int) -> None:
    session.engine.chunk = chunk
    check(session.advance(TOKENS, logits=CONTEXT), expected)


def test_token_by_token(session: EngineSession, expected: Rows) -> None:
    rows = [session.advance(TOKENS[at : at + 1]).copy() for at in range(CONTEXT)]
    check(np.concatenate(rows), expected)


def test_turns(session: EngineSession, expected: Rows) -> None:
    for start, middle, end in ((0, 30, 45), (45, 47, 60), (60, 110, CONTEXT)):
        rows = [session.advance(TOKENS[start:middle], logits=middle - start).copy()]
        rows += [session.advance(TOKENS[at : at + 1]).copy() for at in range(middle, end)]
        check(np.concatenate(rows), expected[start:end])


@pytest.mark.parametrize("length", [99, 95, 84, 80, 61, 40, 24, 23, 7, 1, 0], ids="to-{}".format)
def test_a_return_to_fewer_tokens(session: EngineSession, expected: Rows, length: int) -> None:
    session.advance(TOKENS[:70])
    for at in range(70, 100):
        session.advance(TOKENS[at : at + 1])
    session.rewind(length)
    session.advance(TOKENS[::-1][:5].copy())  # others, which are forgotten again
    session.rewind(length)
    end = min(CONTEXT, length + 20)
    check(session.advance(TOKENS[length:end], logits=end - length), expected[length:end])


def test_rejected_tokens(session: EngineSession, expected: Rows) -> None:
    """Steps of speculation of which a changing number of tokens is kept."""
    session.advance(TOKENS[:5])
    kept = 0
    while session.length < 100:
        at = session.length
        guess = np.concatenate([TOKENS[at : at + 1 + kept], TOKENS[::-1][: 15 - kept]])
        rows = session.verify(guess)[: 1 + kept].copy()
        session.keep(at + 1 + kept)
        check(rows, expected[at : at + 1 + kept])
        kept = (kept + 3) % 12
    check(session.advance(TOKENS[session.length :][:1]), expected[session.length - 1 :][:1])


def test_a_manifest_without_the_rows_is_refused(
    session: EngineSession, source: Tiny, tmp_path: Path
) -> None:
    engine = cpu_engine(session)
    graph = engine._graph
    bare = tuple(msgspec.structs.replace(one, rows=None, window=None) for one in graph.cache.layers)
    wrong = msgspec.structs.replace(graph, cache=msgspec.structs.replace(graph.cache, layers=bare))
    with pytest.raises(BadBundle, match="the manifest says that it grows with its tokens"):
        cpu_session(engine._folder, wrong, capacity=CONTEXT)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_graphs_without_windows_are_the_same_bytes(
    tiny: TinyFactory, tmp_path: Path, name: str
) -> None:
    files = []
    for cuts in (False, True):
        folder = tmp_path / str(cuts)
        build_session(tiny(name).checkpoint, folder, cuts_windows=cuts).close()
        files.append((folder / "model.onnx").read_bytes())
    assert files[0] == files[1]
