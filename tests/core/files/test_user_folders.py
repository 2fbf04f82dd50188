from pathlib import Path

import pytest

from edgelm.files.user_folders import cache_folder, config_folder, state_folder

NAMES = {"XDG_STATE_HOME": state_folder, "XDG_CACHE_HOME": cache_folder}
NAMES |= {"XDG_CONFIG_HOME": config_folder}


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_folder_is_ignored(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(name, raising=False)
    default = NAMES[name]()
    assert default.is_relative_to(tmp_path)
    for value in ("somewhere", ".", "~/state"):
        monkeypatch.setenv(name, value)
        assert NAMES[name]() == default
    monkeypatch.setenv(name, str(tmp_path / "own"))
    assert NAMES[name]() == tmp_path / "own" / "edgelm"
