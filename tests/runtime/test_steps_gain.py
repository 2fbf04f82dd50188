"""What decoding together is worth: what the choice between it and a speculative step needs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgelm.runtime import LanguageModel, shared_steps
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Logits
from tests.runtime.test_shared_steps import Sizes, four, generation, sizes, together

__all__ = ["four", "sizes"]  # fixtures


def test_the_gain_is_that_of_the_measured_runs(
    four: LanguageModel, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of one takes 20 ms here and a run of several 40: two tokens in the time of two."""
    steps = four._sequences.shared_steps
    assert steps is not None
    gains: list[float] = []
    clock = [0.0]

    def slowed(real: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            clock[0] += seconds
            return real(*given, **options)

        return run

    monkeypatch.setattr(shared_steps, "_advance", slowed(shared_steps._advance, 0.02))
    several = slowed(EngineSession.advance_each, 0.04)
    monkeypatch.setattr(EngineSession, "advance_each", several)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def ask(ids: list[int], logits: Logits) -> Logits:
        gains.append(round(steps.gain(four.session), 6))
        return logits

    assert steps.gain(four.session) == 1.0
    generation(four, 0, max_tokens=4)()
    assert steps.gain(four.session) == 1.0, "nobody else decodes"
    for _ in range(10):  # on a busy machine a generation may end before another one has begun
        together(*(generation(four, n, logits_processors=[ask]) for n in range(4)))
        if 2.0 in gains:
            break
    # With four, three and two sequences at that moment; infinite where it was not measured yet.
    assert set(gains) <= {2.0, 1.5, 1.0, np.inf}
    assert 2.0 in gains
    assert steps.gain(four.session) == 1.0, "all have ended"
