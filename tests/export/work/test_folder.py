"""The folder of `--work` after a process was killed while it made it."""

from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.export.work.folder import check_work, work_folder
from edgelm.files.replacing import hidden_sibling

MARK = "edgelm-work.txt"


def use(root: Path) -> None:
    check_work(root, root.parent / "output")
    with work_folder(root, "0" * 16, "code", lambda line: None) as folder:
        assert folder.is_dir()


def killed(root: Path) -> Path:
    """What a process leaves that is killed while it writes the mark."""
    root.mkdir(exist_ok=True)
    left = hidden_sibling(root / MARK)
    left.write_text("Inter")
    return left


def test_killed_before_there_was_a_mark(tmp_path: Path) -> None:
    left = killed(tmp_path / "work")
    use(tmp_path / "work")
    assert not left.exists()


def test_killed_while_another_process_wrote_the_mark(tmp_path: Path) -> None:
    use(tmp_path / "work")
    left = killed(tmp_path / "work")
    use(tmp_path / "work")
    assert not left.exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".notes").write_text("mine")
    with pytest.raises(BadInput, match="holds other files than edgelm's intermediate results"):
        use(tmp_path / "work")
    assert (tmp_path / "work" / ".notes").exists()
