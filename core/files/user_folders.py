"""The user's folders on this system: XDG's on Linux, Library on macOS, AppData on Windows."""

from pathlib import Path


def state_folder() -> Path:
    """What edgelm must not forget: engines that this machine trusts, locks."""
    import platformdirs

    return platformdirs.user_state_path("edgelm", appauthor=False)


def cache_folder() -> Path:
    """What edgelm can compute again."""
    import platformdirs

    return platformdirs.user_cache_path("edgelm", appauthor=False)


def config_folder() -> Path:
    """What the user writes: keys that are trusted."""
    import platformdirs

    return platformdirs.user_config_path("edgelm", appauthor=False)
