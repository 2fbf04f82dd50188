"""Read a GGUF file as a Hugging Face checkpoint (format: ggml docs/gguf.md, versions 2 and 3).

`header` parses the header; the `gguf` package dequantizes one tensor at a time, which is converted
to Hugging Face's layout here.
"""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.config.config_reader import read_config
from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.checkpoint.gguf.header import TensorInfo
from edgelm.checkpoint.gguf.layer_constants import read_constants
from edgelm.checkpoint.gguf.layout.architectures import ARCHITECTURES
from edgelm.checkpoint.gguf.layout.made_tensor import Made, collect
from edgelm.checkpoint.gguf.layout.names import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, Place, hf_place
from edgelm.checkpoint.gguf.layout.orders import Orders
from edgelm.checkpoint.gguf.packed import packed_matrix
from edgelm.checkpoint.gguf.parts import GgufPart, open_parts
from edgelm.checkpoint.gguf.stored_tensor import (
    F16,
    F32,
    Stored,
    dequantize,
    factors,
    some_quantized_rows,
    start,
    stored_bytes,
    unstacked,
)
from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.files.json_files import shown

if TYPE_CHECKING:
    import torch

_KEYS_AND_VALUES = ("attn_k", "attn_v", "attn_k_norm")


class GgufFile:
    """A GGUF file: metadata, configuration and tensors under Hugging Face names.

    Of a split model any part can be given; `path` is the first part, `paths` are all parts.

    Raises:
        BadCheckpoint: a file is damaged, or a part is missing.
        UnknownName: edgelm does not know the architecture.
    """

    def __init__(self, path: Path) -> None:
        parts = open_parts(path)
        self.path = parts[0].path
        self.paths = tuple(part.path for part in parts)
        self.metadata = parts[0].metadata
        kind = self.metadata.text("general.type", "model")
        if kind != "model":
            raise BadCheckpoint(f"{path} is a GGUF {kind} (general.type), expected a model")
        self.architecture = self.metadata.text("general.architecture") or ""
        if self.architecture not in ARCHITECTURES:
            raise UnknownName(
                f"unknown architecture {shown(self.architecture)} in {path.name}; known in GGUF "
                f"files: {', '.join(sorted(ARCHITECTURES))}; for others use the safetensors folder"
            )
        self._row = ARCHITECTURES[self.architecture]
        self._unused_layers = _unused_layers(Keys(self.metadata, self.architecture, {}))
        self._factors: dict[str, Stored] = {}
        self._unused: list[Stored] = []
        self._tensors = self._collect(parts)
        self.shapes = {name: made.shape for name, made in self._tensors.items()}
        self._keys = Keys(self.metadata, self.architecture, self.shapes)
        self._orders = Orders(self._row, self._keys)
        self._constants = read_constants(self._row, self._keys)
        self.shapes |= {name: values.shape for name, values in self._constants.items()}

    def config(self) -> dict[str, Any]:
        """The equivalent `config.json`."""
        found = {name: factors(stored) for name, stored in self._factors.items()}
        return read_config(self._keys, found)

    @property
    def read_by_transformers(self) -> bool:
        """Whether transformers itself reads files of this architecture."""
        return self._row.by_transformers

    def check_tensors(self) -> None:
        """Raise BadCheckpoint unless every tensor is inside its file and can be dequantized."""
        made = [part for one in self._tensors.values() for part in one.parts]
        spans: dict[Path, list[tuple[int, int, str]]] = {path: [] for path in self.paths}
        for one in (*made, *self._factors.values(), *self._unused):
            begin = start(one)
            spans[one.part.path].append((begin, begin + stored_bytes(one), one.name))
        for path, ends in spans.items():
            ends.sort()
            for (_, end, name), (begin, _, other) in pairwise(ends):
                if begin < end:
                    raise BadCheckpoint(
                        f"{path}: the tensors {name} and {other} overlap; download it again"
                    )

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantized to fp32, in Hugging Face's layout."""
        if name in self._constants:
            return self._constants[name]
        made = self._tensors[name]
        return self._from_ggml(
            name, made.values(self._orders.rows(made), self._orders.columns(made))
        )

    def read_rows(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Some rows of a matrix in Hugging Face's layout, such as the embeddings of tokens.

        Only these rows are dequantized.
        """
        made = self._tensors[name]
        stored = made.parts[0]
        floats = stored.info.ggml_type in (F32, F16)
        if floats or len(made.parts) > 1 or self._orders.moves(name):
            return self.read(name)[rows]
        values = dequantize(some_quantized_rows(stored, rows), stored.info.ggml_type)
        return self._from_ggml(name, values.reshape(len(rows), *made.shape[1:]))

    def packed(self) -> dict[str, PackedMatrix]:
        """The quantized matrices."""
        return {
            name: packed_matrix(made, self._orders, _Values(self, name))
            for name, made in self._tensors.items()
            if made.is_quantized
        }

    def _collect(self, parts: list[GgufPart]) -> dict[str, Made]:
        found: dict[str, dict[int, tuple[Place, Stored]]] = defaultdict(dict)
        for part in parts:
            for name, info in part.header.tensors.items():
                for one, slice_ in unstacked(self._row.stacks.get(name), Stored(name, part, info)):
                    self._place(found, one, part, slice_)
        return collect(found, alternating=self._row.experts_by_input)

    def _place(
        self,
        found: dict[str, dict[int, tuple[Place, Stored]]],
        name: str,
        part: GgufPart,
        info: TensorInfo,
    ) -> None:
        if name in (ROPE_FREQS, ROPE_SHORT, ROPE_LONG):
            self._factors[name] = Stored(name, part, info)
            return
        place = hf_place(self.architecture, name)
        title = name if place.name == name else f"{place.name} ({name})"
        stored = Stored(title, part, info)
        if self._is_unused(name):
            self._unused.append(stored)
            return
        others = found[place.name]
        if place.part in others:
            raise BadCheckpoint(
                f"{part.path}: {name} and {others[place.part][1].name} are the same tensor; "
                "convert the model again"
            )
        others[place.part] = place, stored

    def _is_unused(self, name: str) -> bool:
        """Whether nothing reads a tensor.

        It is of a layer that predicts further tokens, after the decoder's, or keys and values of
        one that reads another's (Gemma 4).
        """
        blk, layer, part, *_ = [*name.split("."), "", ""]
        if blk != "blk" or not layer.isdecimal() or len(layer) > 9 or self._unused_layers is None:
            return False
        after, shared = self._unused_layers
        return int(layer) >= after or (int(layer) >= shared and part in _KEYS_AND_VALUES)

    def _from_ggml(self, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if name.endswith(".A_log"):
            return self._logarithm(name, tensor)
        offset = self._row.norm_plus_one and "norm" in name
        if offset and not any(plain in name for plain in self._row.plain_norms):
            return tensor - 1.0
        return tensor

    def _logarithm(self, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """llama.cpp stores -exp(A)."""
        if not (tensor < 0).all():
            raise BadCheckpoint(
                f"{self.path}: {self._tensors[name].parts[0].name} must hold numbers below 0; "
                "convert the model again"
            )
        return np.log(-tensor.astype(np.float64)).astype(np.float32)


def _unused_layers(keys: Keys) -> tuple[int, int] | None:
    """The first layer after the decoder's, and the first one that reads another's keys."""
    shared = keys.count("attention.shared_kv_layers")
    if not shared and not keys.count("nextn_predict_layers"):
        return None
    return keys.layers, keys.layers - shared


class _Values(NamedTuple):
    """A matrix in a format that is not a grid."""

    file: GgufFile
    name: str

    def dequantize(self) -> "torch.Tensor":
        """The matrix, fp32."""
        import torch

        return torch.from_numpy(self.file.read(self.name))
