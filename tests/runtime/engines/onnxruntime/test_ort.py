"""The ONNX Runtime session: the cache, rewinding, chunked prefill."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgelm.bundle import read_manifest
from edgelm.devices.detection.threads import physical_cores
from edgelm.errors import BadBundle, BadInput, ContextFull
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import Session
from tests.checkpoints.tiny_chat import VOCAB
from tests.export.graphs import cpu_session

TOKENS = np.random.default_rng(0).integers(4, VOCAB, 40)
CAPACITY = 48
CHUNK = 8


def open_session(bundle: Path, *, chunk: int = CHUNK, capacity: int = CAPACITY) -> Session:
    graph = read_manifest(bundle).graph
    return cpu_session(bundle, graph, capacity=capacity, chunk=chunk, threads=1)


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with open_session(bundle) as session:
        yield session


@pytest.fixture(scope="module")
def expected(hf: Any) -> npt.NDArray[np.float32]:
    """Logits [T, vocab] of transformers."""
    with torch.inference_mode():
        rows: npt.NDArray[np.float32] = hf(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return rows


def assert_close(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


# CHUNK is 8: within one chunk, its border, over several, more than one chunk of logits, all.
@pytest.mark.parametrize("count", [1, 5, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("logits", [1, 3, 8, 9, 20, 40])
def test_prefill_gives_the_last_rows(
    session: Session, expected: npt.NDArray[np.float32], count: int, logits: int
) -> None:
    ours = session.advance(TOKENS[:count], logits=logits)
    assert_close(ours, expected[:count][-logits:])
    assert session.length == count


@pytest.mark.parametrize("chunk", [1, 7, 40, 128])
def test_chunks_do_not_change_logits(
    bundle: Path, expected: npt.NDArray[np.float32], chunk: int
) -> None:
    with open_session(bundle, chunk=chunk) as session:
        assert_close(session.advance(TOKENS, logits=11), expected[-11:])


def test_prefill_then_single_tokens(session: Session, expected: npt.NDArray[np.float32]) -> None:
    session.advance(TOKENS[:30])
    for at in range(30, 40):
        row = session.advance(TOKENS[at : at + 1])
        assert_close(row, expected[at : at + 1])
    assert session.length == 40


@pytest.mark.parametrize("length", [0, 1, 7, 8, 39])
def test_rewind_forgets(session: Session, expected: npt.NDArray[np.float32], length: int) -> None:
    session.advance(TOKENS[:length] if length else TOKENS[:1])
    session.rewind(length)
    session.advance(TOKENS[::-1][: CAPACITY - length])  # something else, then forgotten
    session.rewind(length)
    assert session.length == length
    ours = session.advance(TOKENS[length:], logits=40 - length)
    assert_close(ours, expected[length:])


@pytest.mark.parametrize("length", [-1, 6])
def test_rewind_beyond_what_is_there(session: Session, length: int) -> None:
    session.advance(TOKENS[:5])
    with pytest.raises(BadInput, match=f"cannot rewind to {length}: the cache holds 5 tokens"):
        session.rewind(length)
    assert session.length == 5


def test_a_full_cache_says_so_and_stays_as_it_was(
    bundle: Path, expected: npt.NDArray[np.float32]
) -> None:
    with open_session(bundle, capacity=20) as session:
        session.advance(TOKENS[:12])
        with pytest.raises(ContextFull, match="12 tokens and 9 more do not fit in a context of 20"):
            session.advance(TOKENS[12:21])
        assert session.length == 12
        assert_close(session.advance(TOKENS[12:20], logits=8), expected[12:20])
        with pytest.raises(ContextFull, match="20 tokens and 1 more"):
            session.advance(TOKENS[20:21])
        assert session.length == 20
        session.rewind(19)
        assert_close(session.advance(TOKENS[19:20]), expected[19:20])


def test_a_failed_prefill_leaves_the_cache_as_it_was(
    session: Session, expected: npt.NDArray[np.float32]
) -> None:
    session.advance(TOKENS[:10])
    broken = TOKENS[10:30].copy()
    broken[-1] = VOCAB + 5  # fails in the third chunk
    with pytest.raises(Exception, match="out of data bounds"):
        session.advance(broken)
    assert session.length == 10
    assert_close(session.advance(TOKENS[10:], logits=30), expected[10:])


def test_two_sessions_do_not_share_a_cache(bundle: Path, expected: npt.NDArray[np.float32]) -> None:
    with open_session(bundle) as one, open_session(bundle) as two:
        one.advance(TOKENS[:10])
        two.advance(TOKENS[::-1][:10].copy())
        assert_close(one.advance(TOKENS[10:11]), expected[10:11])


def test_cache_bytes_follow_the_capacity(bundle: Path) -> None:
    spec = read_manifest(bundle).spec
    with open_session(bundle, capacity=CAPACITY) as session:
        per_token = 2 * 4 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
        assert session.cache_bytes == CAPACITY * per_token


def test_it_is_a_session(session: Session) -> None:
    as_protocol: Session = session
    assert (as_protocol.length, as_protocol.capacity) == (0, CAPACITY)
    assert as_protocol.vocab_size == VOCAB


def test_a_graph_that_does_not_load(bundle: Path, tmp_path: Path) -> None:
    graph = read_manifest(bundle).graph
    (tmp_path / graph.file).write_bytes(b"no graph")
    with pytest.raises(BadBundle, match=rf"cannot load {tmp_path}/model\.onnx: "):
        OrtEngine(tmp_path, graph, capacity=8, prefill_chunk=8)


def test_physical_cores_are_among_the_allowed_ones() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
