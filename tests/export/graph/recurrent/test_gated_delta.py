"""The gated delta rule in chunks is the rule token by token, however the tokens are cut."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgelm.runtime.engines.session import Session
from tests.conftest import Tiny, TinyFactory
from tests.export.graph.test_parity import assert_close
from tests.export.graphs import build_session

LENGTH = 64  # of the context, of a run, and of two of the graph's chunks of 32
TOKENS = np.random.default_rng(0).integers(3, 128, LENGTH)


@pytest.fixture(scope="module")
def source(tiny: TinyFactory) -> Tiny:
    return tiny("qwen3.5")


@pytest.fixture(scope="module")
def expected(source: Tiny) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return source.hf(torch.from_numpy(TOKENS)[None]).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["ort", "standard", "decomposed"])
def loaded(
    source: Tiny, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("delta")
    with build_session(source.checkpoint, folder, dialect=request.param, chunk=LENGTH) as session:
        yield session


@pytest.mark.parametrize("first", [1, 2, 31, 32, 33, 63, 64], ids="first-{}".format)
def test_runs_of_any_length(loaded: Session, expected: npt.NDArray[np.float32], first: int) -> None:
    loaded.rewind(0)
    rows = [loaded.advance(TOKENS[:first], logits=first).copy()]
    if first < LENGTH:
        rows.append(loaded.advance(TOKENS[first:], logits=LENGTH - first).copy())
    assert_close(np.concatenate(rows), expected)
