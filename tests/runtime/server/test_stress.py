"""A short run of the stress program (`python -m tests.runtime.server.stress BUNDLE`)."""

from pathlib import Path

import pytest

import edgelm
from tests.runtime.server.stress import stress


@pytest.mark.slow
def test_no_answer_belongs_to_another_request(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1, sequences=3) as lm:
        result = stress(lm, 300)
    assert result.wrong == []
    assert result.statuses[200] > 100
    assert result.statuses["left"] > 5
