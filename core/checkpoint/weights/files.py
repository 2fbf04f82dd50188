"""The weight files of a model's folder, chosen as transformers does.

`model.safetensors` first, then the shards in `model.safetensors.index.json`. Other files, such as a
backup next to the model, are not read.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgelm.checkpoint.weights.safetensors_header import StoredTensor, read_header
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_json_object, shown

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of a model, in order.

    Raises:
        BadCheckpoint: there are none, some are missing, or the index names other files.
    """
    distributed = next((p.name for p in folder.iterdir() if _DISTRIBUTED.match(p.name)), None)
    if distributed:
        raise BadCheckpoint(
            f"{folder} holds the shards of several training processes ({distributed}), which are "
            "not supported; save the whole model (transformers: model.save_pretrained(folder))"
        )
    name = config.get("transformers_weights")
    if name is not None:
        return _named(folder, name)
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return _shards(folder, folder / _INDEX)
    raise _nothing(folder)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights, and not only a configuration."""
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def incomplete_index(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The index that transformers cannot read, since its `metadata` is missing or not an object.

    Nothing in it is needed to load the shards.
    """
    if config.get("transformers_weights") is not None or (folder / _SINGLE).is_file():
        return None
    index = folder / _INDEX
    if not index.is_file() or isinstance(read_json_object(index).get("metadata"), dict):
        return None
    return index


def stored_tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """All tensors of a model's files by their stored names.

    Raises:
        BadCheckpoint: a file is damaged, or a name is in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        header = read_header(file)
        if twice := header.keys() & tensors.keys():
            name = min(twice)
            raise BadCheckpoint(
                f"{file} and {tensors[name].path.name} both contain {shown(name)}; keep "
                "only the one of the model"
            )
        tensors |= header
    return tensors


def _named(folder: Path, name: Any) -> list[Path]:
    """The file that `transformers_weights` in config.json names instead of the usual ones."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise BadCheckpoint(
            f"{folder / 'config.json'}: transformers_weights is {shown(name)}, expected a file "
            "*.safetensors or *.safetensors.index.json"
        )
    path = _inside(folder, name, "config.json, transformers_weights,")
    if not path.is_file():
        raise BadCheckpoint(f"{folder} lacks {name}, which config.json names as its weights")
    return _shards(folder, path) if name.endswith(".json") else [path]


def _shards(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(
            f"{index} is damaged: weight_map is {shown(weight_map)}, expected a file name for each "
            "tensor; download it again"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise BadCheckpoint(
                f"{index} is damaged: {shown(tensor)} is in {shown(name)}, expected the name of a "
                "*.safetensors file; download it again"
            )
    names = sorted(set(weight_map.values()))
    shards = [_inside(folder, name, index.name) for name in names]
    missing = [path.name for path in shards if not _is_file(path)]
    if missing:
        raise BadCheckpoint(
            f"{folder} lacks {len(missing)} of {len(names)} shards, first {shown(missing[0])}; "
            "download it again"
        )
    return shards


def _inside(folder: Path, name: str, source: str) -> Path:
    """A file in the folder; it may be a link, as in the hub's cache."""
    windows = PureWindowsPath(name)
    outside = ".." in windows.parts or windows.drive or windows.root or "\0" in name
    if outside or PurePosixPath(name).is_absolute():
        raise BadCheckpoint(
            f"{folder}: {source} names {shown(name)}, which is outside of the folder; expected a "
            "file in it"
        )
    return folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _nothing(folder: Path) -> BadCheckpoint:
    pickled = [path.name for pattern in _PICKLED for path in folder.glob(pattern)]
    if pickled:
        return BadCheckpoint(
            f"{folder} has only pickled weights ({pickled[0]}), which can run any code when "
            "loaded; convert them to safetensors first (transformers: "
            "model.save_pretrained(folder))"
        )
    gguf = next((path.name for path in folder.iterdir() if path.suffix.lower() == ".gguf"), None)
    if gguf:
        return BadCheckpoint(f"{folder} holds no {_SINGLE}, but {gguf}; pass that file itself")
    named = [folder / name for name in (_SINGLE, _INDEX) if os.path.lexists(folder / name)]
    if named:
        return BadCheckpoint(
            f"{named[0]} is not a regular file, or a link to a missing one; download it again"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return BadCheckpoint(
            f"{folder} holds no {_SINGLE} and no {_INDEX}, only {others[0]}, which transformers "
            "does not read either; if it is the model, rename it"
        )
    return BadCheckpoint(f"{folder} holds no *.safetensors file; expected {_SINGLE} or {_INDEX}")
