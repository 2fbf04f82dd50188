"""A short run of the soak program (`python -m tests.runtime.soak BUNDLE`)."""

from pathlib import Path

import edgelm
from tests.runtime.soak import soak


def test_memory_stays_flat(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        sizes = soak(lm, 400)
    assert len(sizes) == 20
    # A leak of the cache or of a request's arrays would be of megabytes here.
    assert sizes[-1] - sizes[5] < 20
