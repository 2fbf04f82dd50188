"""The folder that recipes of these tests are about."""

from pathlib import Path

import pytest

from tests.compress.recipes import workshop


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher with its text, read by tests and never changed; see `workshop`."""
    return workshop(tmp_path_factory.mktemp("workshop"))
