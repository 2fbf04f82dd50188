"""What Python opens and starts while a case is opened."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
_REMOVES = ("os.remove", "os.rmdir", "os.rename", "os.truncate", "shutil.rmtree", "os.symlink")


class Seen:
    """Resolved paths that were opened, and other events that opening a file should not cause."""

    def __init__(self) -> None:
        self.active = False
        self.opened: list[Path] = []
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            # The name as it is: resolving it here would audit in turn.
            self.opened.append(Path(os.fsdecode(arguments[0])))
        elif event.startswith((*_STARTS, *_REMOVES)):
            self.events.append(event)


_SEEN = Seen()
_installed = False


@contextmanager
def watching() -> Iterator[Seen]:
    """Record within the block; a hook cannot be removed, so one serves a process for its life."""
    global _installed
    if not _installed:
        sys.addaudithook(_SEEN)
        _installed = True
    _SEEN.opened, _SEEN.events, _SEEN.active = [], [], True
    try:
        yield _SEEN
    finally:
        _SEEN.active = False
