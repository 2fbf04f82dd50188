"""A changed byte anywhere in a sealed file is noticed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from edgelm.files.sealed_tensors import UNSEALED, is_sealed, seal_file, sealed

TENSORS = {"a": torch.arange(6.0), "sha256": torch.ones(2)}


@pytest.mark.parametrize("as_file", [False, True])
def test_every_changed_byte_is_noticed(tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "x.safetensors"
    if as_file:
        save_file(TENSORS, path, {"of": "this", **UNSEALED})
        assert not is_sealed(path)
        seal_file(path)
    else:
        path.write_bytes(sealed(save(TENSORS, UNSEALED)))
    assert is_sealed(path)
    assert torch.equal(load_file(path)["a"], TENSORS["a"])
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not is_sealed(path)
    for cut in (b"", content[:7], content[:40], content[:-1], content + b"x"):
        path.write_bytes(cut)
        assert not is_sealed(path)


def test_files_without_a_hash(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("plain.safetensors", "folder", "none"):
        assert not is_sealed(tmp_path / name)
