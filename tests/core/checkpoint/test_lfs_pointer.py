"""A repository that was cloned without Git LFS: what to do is said, whichever file it is."""

import shutil
from pathlib import Path

import pytest

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from tests.conftest import TinyFactory

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_in_a_folder(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny("llama").folder, tmp_path / "model")
    (folder / name).write_text(POINTER)
    with pytest.raises(BadCheckpoint, match=rf"{name} is a pointer of Git LFS .*git lfs pull"):
        open_checkpoint(folder)


def test_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text(POINTER)
    with pytest.raises(BadCheckpoint, match=r"model.gguf is a pointer of Git LFS"):
        open_checkpoint(tmp_path / "model.gguf")
