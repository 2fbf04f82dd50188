"""What is given in place of a bundle: the error has the command that makes one."""

from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.bundle_folder import bundle_folder


@pytest.mark.parametrize("given", [None, 5, ["bundle"], ""], ids=repr)
def test_what_is_not_a_path(given: Any) -> None:
    with pytest.raises(BadInput, match="expected the folder that edge-export wrote"):
        edgelm.load(given)


def test_a_hub_id_or_a_typing_error() -> None:
    message = r"there is no such folder\): make one with: edge-export MODEL -o "
    with pytest.raises(BadBundle, match=message):
        edgelm.load("nobody/no-such-model")


def test_a_model_file(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    with pytest.raises(BadBundle, match=rf"this is a file\): export it with: edge-export {model}"):
        edgelm.load(model)


def test_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadBundle, match=r"it is a checkpoint, without bundle\.json"):
        edgelm.load(tmp_path)


def test_the_manifest_in_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(BadBundle, match=f"give its folder: {tmp_path}"):
        edgelm.load(tmp_path / "bundle.json")
    assert bundle_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("size", [1.5, True, 0, -1], ids=repr)
def test_memory_that_is_not_a_size(size: Any, bundle: Path) -> None:
    with pytest.raises(BadInput, match=r"max_memory is .*, expected bytes above 0 or a size such"):
        edgelm.load(bundle, max_memory=size)
