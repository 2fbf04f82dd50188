"""The folder that recipes of these tests are about, and Ctrl-C as in a terminal."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compress.recipes import workshop


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher with its text, read by tests and never changed; see `workshop`."""
    return workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """A shell starts programs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
