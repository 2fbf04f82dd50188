"""Layers that read another's keys and values: greedy text, and segments that both read a cache.

In segments of Gemma 3n, all residual streams pass from one to the next.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.runtime.engines.session import Session
from tests.conftest import TinyFactory
from tests.export.graphs import DialectName, build_session
from tests.slow import slow_but

PROMPT = np.random.default_rng(3).integers(3, 128, 20)
NEW = 100


def greedy(session: Session, count: int) -> list[int]:
    token, found = int(session.advance(PROMPT)[-1].argmax()), list[int]()
    for _ in range(count):
        found.append(token)
        token = int(session.advance(np.array([token]))[-1].argmax())
    return found


@pytest.mark.parametrize("dialect", ["ort", "standard", "decomposed"])
@pytest.mark.parametrize(
    "name", slow_but(["gemma3n", "gemma4", "gemma4-dense"], ["gemma3n", "gemma4"])
)
def test_greedy_text_is_hugging_faces(
    tiny: TinyFactory, tmp_path: Path, name: str, dialect: DialectName
) -> None:
    source = tiny(name)
    with torch.inference_mode():
        whole = source.hf.generate(
            torch.from_numpy(PROMPT)[None],
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
        )
    with build_session(source.checkpoint, tmp_path, dialect=dialect, context=128) as session:
        assert greedy(session, NEW) == whole[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("dialect", ["standard", "decomposed"])
@pytest.mark.parametrize(
    ("name", "count"), [("gemma4", 2), ("gemma4", 3), ("gemma4", 7), ("gemma3n", 3)]
)
def test_segments_share_a_cache(
    tiny: TinyFactory, tmp_path: Path, dialect: DialectName, name: str, count: int
) -> None:
    source = tiny(name)
    logits = []
    for segments in (1, count):
        with build_session(
            source.checkpoint, tmp_path / str(segments), dialect=dialect, segments=segments
        ) as session:
            prefilled = session.advance(PROMPT, logits=len(PROMPT)).copy()
            stepped = session.advance(PROMPT[:1]).copy()
            logits.append(np.concatenate([prefilled, stepped]))
    assert np.array_equal(logits[0], logits[1])
