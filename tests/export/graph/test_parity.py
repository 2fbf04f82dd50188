"""The fp32 graph computes what Hugging Face computes, whichever way the cache was filled."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgelm.runtime.engines.session import Session
from tests.checkpoints.models import TINY
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import CHUNK, build_session

Array = npt.NDArray[np.float32]
TOLERANCE = 1e-4  # of the largest logit
# Longer than every window (8 and 16) and the chunk (16), and than llama3's and yarn's original 32.
LENGTH = 48


def assert_close(ours: Array, expected: Array) -> None:
    assert ours.shape == expected.shape
    difference = float(np.abs(ours - expected).max())
    assert difference <= TOLERANCE * float(np.abs(expected).max())


@pytest.fixture(scope="module")
def tokens() -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(3, 128, LENGTH)


@pytest.fixture(scope="module", params=sorted(TINY))
def source(request: pytest.FixtureRequest, tiny: TinyFactory) -> Tiny:
    return tiny(request.param)


@pytest.fixture(scope="module")
def expected(source: Tiny, tokens: npt.NDArray[np.int64]) -> Array:
    with torch.inference_mode():
        logits: Array = source.hf(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return logits


@pytest.fixture(scope="module", params=["ort", "standard", "decomposed"])
def loaded(
    source: Tiny, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    if source.checkpoint.spec.mixtures and request.param != "ort":
        pytest.skip("only ONNX Runtime has operators for experts")
    folder = tmp_path_factory.mktemp("graph")
    with build_session(source.checkpoint, folder, dialect=request.param) as session:
        yield session


@pytest.fixture
def session(loaded: Session) -> Session:
    loaded.rewind(0)
    return loaded


def test_prefill_in_one_chunk(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    assert_close(session.advance(tokens[:CHUNK], logits=CHUNK), expected[:CHUNK])


def test_prefill_in_chunks(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    assert_close(session.advance(tokens, logits=LENGTH), expected)


def test_decode_step_by_step(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    ours = [session.advance(tokens[at : at + 1])[0].copy() for at in range(LENGTH)]
    assert_close(np.stack(ours), expected)


def test_prefill_then_decode_is_a_longer_prefill(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    last = session.advance(tokens[:20]).copy()
    steps = [session.advance(tokens[at : at + 1]).copy() for at in range(20, LENGTH)]
    assert_close(np.concatenate([last, *steps]), expected[19:])


def test_turns_of_prefill_and_decode(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    ours = [session.advance(tokens[:11], logits=11).copy()]
    ours += [session.advance(tokens[at : at + 1]).copy() for at in range(11, 17)]
    ours.append(session.advance(tokens[17:40], logits=23).copy())  # crosses a chunk's end
    ours += [session.advance(tokens[at : at + 1]).copy() for at in range(40, LENGTH)]
    assert_close(np.concatenate(ours), expected)


def test_rewind_forgets_what_followed(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array
) -> None:
    session.advance(tokens[:14])
    session.advance(tokens[::-1].copy())  # another continuation, which then turns out wrong
    session.rewind(14)
    prefilled = session.advance(tokens[14:30], logits=16).copy()
    session.rewind(22)
    decoded = session.advance(tokens[22:23]).copy()
    assert_close(prefilled, expected[14:30])
    assert_close(decoded, expected[22:23])


@pytest.mark.parametrize("rows", [1, 2, CHUNK, CHUNK + 1, 40], ids="last-{}".format)
def test_only_the_requested_rows(
    session: Session, tokens: npt.NDArray[np.int64], expected: Array, rows: int
) -> None:
    assert_close(session.advance(tokens[:40], logits=rows), expected[40 - rows : 40])
