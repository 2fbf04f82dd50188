"""Bundles that are whole by their hashes and wrong in one thing, as a bug would leave them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from msgspec.structs import replace
from onnx import external_data_helper, numpy_helper

from edgelm.bundle import hash_files, read_manifest, write_manifest

Array = npt.NDArray[Any]
Change = Callable[[Array], Array]


def copied(bundle: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy with a change, whose manifest has the new hashes."""
    shutil.copytree(bundle, folder)
    change(folder)
    write_manifest(folder, replace(read_manifest(folder), files=hash_files(folder)))
    return folder


def change_tensor(name: str, change: Change) -> Callable[[Path], None]:
    """Change one weight of the graph in place; the change must keep shape and type."""

    def apply(folder: Path) -> None:
        path = folder / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        external = external_data_helper.uses_external_data(tensor)
        where = external_data_helper.ExternalDataInfo(tensor) if external else None
        if external:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        before = numpy_helper.to_array(tensor)
        after = np.ascontiguousarray(change(before.copy()))
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert not np.array_equal(after, before)
        if where is None:
            tensor.raw_data = after.tobytes()
            onnx.save(model, path)
            return
        with (folder / where.location).open("r+b") as file:
            file.seek(int(where.offset or 0))
            file.write(after.tobytes())

    return apply


def swap_rows(values: Array) -> Array:
    """Every scale belongs to another output."""
    return values[::-1]


def halve_frequencies(values: Array) -> Array:
    """Rotary tables of a model whose frequencies are scaled by two."""
    return values[np.arange(len(values)) // 2]


def transpose_storage(values: Array) -> Array:
    """The bytes of the transposed matrix under the shape of the matrix."""
    return values.T.reshape(values.shape)


def double(values: Array) -> Array:
    """Twice the values."""
    return (values * 2).astype(values.dtype)


def without_end_of_turn(folder: Path) -> None:
    """A generation config that names no token that ends an answer."""
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "eos_token_id": None}))


def without_generation_prompt(folder: Path) -> None:
    """A chat template that does not begin the assistant's turn."""
    path = folder / "chat_template.jinja"
    begun = "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    text = path.read_text()
    assert begun in text
    path.write_text(text.replace(begun, ""))
