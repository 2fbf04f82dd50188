"""Readers are closed after each test: an open file is a warning."""

from collections.abc import Callable, Iterator

import pytest

from edgelm.devices.detection.machine import Unread
from edgelm.devices.sensors.reader import Found, Reader

Keep = Callable[[Found], tuple[dict[str, Reader], dict[str, str]]]


@pytest.fixture
def keep() -> Iterator[Keep]:
    """What was found, by name: the readers, and why something is unread."""
    kept: list[Reader] = []

    def keep(found: Found) -> tuple[dict[str, Reader], dict[str, str]]:
        readers, unread = found
        kept.extend(readers)
        return {one.name: one for one in readers}, {one.what: _line(one) for one in unread}

    yield keep
    for reader in kept:
        reader.close()


def _line(unread: Unread) -> str:
    return f"{unread.where}: {unread.why}"
