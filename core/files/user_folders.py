"""The user's folders on this system: XDG's on Linux, Library on macOS, AppData on Windows."""

import os
from pathlib import Path


def state_folder() -> Path:
    """What edgelm must not forget: engines that this machine trusts, locks."""
    import platformdirs

    return _absolute(platformdirs.user_state_path("edgelm", appauthor=False), ".local/state")


def cache_folder() -> Path:
    """What edgelm can compute again."""
    import platformdirs

    return _absolute(platformdirs.user_cache_path("edgelm", appauthor=False), ".cache")


def config_folder() -> Path:
    """What the user writes: keys that are trusted."""
    import platformdirs

    return _absolute(platformdirs.user_config_path("edgelm", appauthor=False), ".config")


def _absolute(folder: Path, default: str) -> Path:
    """XDG's specification ignores relative paths: they would lie wherever a command is started."""
    if folder.is_absolute():
        return folder
    return Path(os.path.expanduser("~"), default, "edgelm")
