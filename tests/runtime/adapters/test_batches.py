"""Runs over several sequences with different adapters, and memory that they are brought to."""

from pathlib import Path

import numpy as np
import pytest

from edgelm.bundle import read_manifest
from edgelm.runtime.engines.adapters import Adapters
from edgelm.runtime.engines.engine_session import EngineSession
from tests.checkpoints.tiny_chat import CONTEXT
from tests.export.graphs import cpu_engine, cpu_session

TOKENS = np.random.default_rng(0).integers(4, 320, (4, 50))
CHOICES = ("pirate", None, "pirate", "poet")


def test_rows_are_those_of_each_alone(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(adapted)
    adapters = Adapters(adapted, manifest)
    first = cpu_session(adapted, manifest.graph, capacity=CONTEXT, chunk=8, threads=1)
    together = [first, *(first.sibling() for _ in CHOICES[1:])]
    single = cpu_session(adapted, manifest.graph, capacity=CONTEXT, chunk=8, threads=1)
    for session, name, tokens in zip(together, CHOICES, TOKENS, strict=True):
        session.use_adapter(adapters.find(name))
        session.advance(tokens[:10])
    moves: list[list[int]] = []
    pool = cpu_engine(first)._pool
    monkeypatch.setattr(pool, "bring_together", _counting(pool.bring_together, moves))
    found = [
        EngineSession.advance_each(together, [int(row[at]) for row in TOKENS])
        for at in range(10, 50)
    ]
    for number, (name, tokens) in enumerate(zip(CHOICES, TOKENS, strict=True)):
        single.use_adapter(adapters.find(name))
        single.rewind(0)
        single.advance(tokens[:10])
        for step, at in enumerate(range(10, 50)):
            expected = single.advance(tokens[at : at + 1])
            np.testing.assert_allclose(found[step][number], expected, atol=1e-4)
    # Both with the same adapter are neighbors after one move, and stay where they are.
    assert len(moves) == 1
    places = moves[0]
    assert abs(places.index(0) - places.index(2)) == 1


def _counting(real: object, moves: list[list[int]]) -> object:
    def bring_together(places: list[int]) -> None:
        moves.append(list(places))
        real(places)  # type: ignore[operator]

    return bring_together
