"""Checkpoints that are damaged are known as such; a kill leaves one that is whole."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.compress.distillation.checkpoints import Checkpoints
from edgelm.compress.distillation.settings import Distillation
from edgelm.errors import BadInput


class Settings(msgspec.Struct):
    """Of a run."""

    rate: float = 0.1


class Accelerator:
    """Saves and loads one number."""

    is_main_process = True
    device = torch.device("cpu")
    state = 0

    def wait_for_everyone(self) -> None:
        """There is nobody else."""

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        """The sum over this one process."""
        assert how == "sum"
        return value

    def save_state(self, folder: str, **_: Any) -> None:
        """Write the state."""
        Path(folder).mkdir()
        (Path(folder) / "state").write_text(str(self.state))

    def load_state(self, folder: str) -> None:
        """Read the state."""
        self.state = int((Path(folder) / "state").read_text())


def checkpoints(folder: Path, rate: float = 0.1) -> Checkpoints:
    return Checkpoints(folder, Accelerator(), Settings(rate))


def saved(folder: Path, step: int) -> Checkpoints:
    opened = checkpoints(folder)
    opened.accelerator.state = step
    opened.save(step)
    return opened


def test_resumes_where_it_was(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    saved(tmp_path, 4)
    opened = checkpoints(tmp_path)
    assert opened.resume() == opened.accelerator.state == 4
    assert len(list(tmp_path.glob("step-*"))) == 1


@pytest.mark.parametrize("name", ["state", "sha256.json"])
@pytest.mark.parametrize("content", [None, b"", b"5", b"\xff{"])
def test_a_damaged_one_is_an_error(tmp_path: Path, name: str, content: bytes | None) -> None:
    saved(tmp_path, 4)
    path = tmp_path / "step-00000004" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BadInput, match=r"step-00000004 is damaged .*; remove .* or restore"):
        checkpoints(tmp_path).resume()
    assert path.parent.is_dir()


def test_the_one_before_a_damaged_one_counts(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for name in ("step-00000004", "step-abc", "step-6", "step-00000008.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000010").write_text("a file")
    opened = checkpoints(tmp_path)
    assert opened.resume() == 2
    opened.save(4)
    assert (tmp_path / "step-abc").is_dir(), "it is none of ours"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 5000])
def test_damaged_settings(tmp_path: Path, content: bytes) -> None:
    checkpoints(tmp_path)
    (tmp_path / "settings.json").write_bytes(content)
    saved(tmp_path, 2)  # nothing was trained: they are written again
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"settings.json is damaged .* remove the folder"):
        checkpoints(tmp_path)


def test_other_settings(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    with pytest.raises(BadInput, match=r"other settings \(rate 0.1, now 0.2\)"):
        checkpoints(tmp_path, 0.2)


def test_a_default_that_was_written_out(tmp_path: Path) -> None:
    """1e-5 was the default of every run; it still is that of all but careful ones."""
    settings = Distillation(learning_rate=1e-4)
    written = msgspec.structs.replace(settings, final_learning_rate=1e-5)
    Checkpoints(tmp_path, Accelerator(), settings)
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode(written))
    Checkpoints(tmp_path, Accelerator(), settings)
    careful = msgspec.structs.replace(settings, learning_rate=1e-5)
    written = msgspec.structs.replace(careful, final_learning_rate=1e-5)
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode(written))
    (tmp_path / "step-00000100").mkdir()
    with pytest.raises(
        BadInput, match=r"learning rate of step 17 was 1e-05, and is now 9.99\d*e-06"
    ):
        Checkpoints(tmp_path, Accelerator(), careful)
