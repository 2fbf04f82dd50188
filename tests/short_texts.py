"""How much text tiny exports of tests run: most of what they cost."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgelm.export import calibration
from edgelm.export.source.text import affordable


@contextmanager
def sequences(most: int | None) -> Iterator[None]:
    """In this block exports run at most so many sequences of a text; None: as many as usual."""
    chosen = affordable if most is None else lambda *_: most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "affordable", chosen)
        yield
