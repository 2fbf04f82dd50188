"""Folders of weights that are not as `save_pretrained` leaves them: tensors and headers by hand."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


def tensors_of(folder: Path) -> Tensors:
    """All tensors of `model.safetensors`."""
    return load_file(folder / "model.safetensors")


def store(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = "model") -> Path:
    """Write tensors as one file, each with memory of its own."""
    path = folder / f"{name}.safetensors"
    own = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})
    return path


def store_shards(folder: Path, *shards: Mapping[str, torch.Tensor]) -> None:
    """Write shards and their index instead of one file."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        path = store(folder, tensors, f"model-{number:05}-of-{len(shards):05}")
        weight_map |= dict.fromkeys(tensors, path.name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def edit_config(folder: Path, **values: Any) -> None:
    """Set fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def split_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: Any, data: bytes) -> None:
    """Write a safetensors file with any header: bytes, or what JSON can hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
