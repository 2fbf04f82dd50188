"""Where edgelm keeps what must outlive a run, as the XDG base directory specification says."""

import os
from pathlib import Path


def state_folder() -> Path:
    """The folder; it may not be there yet."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "edgelm"
