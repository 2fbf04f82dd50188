"""Read a GGUF file as a Hugging Face checkpoint (format: ggml docs/gguf.md, versions 2 and 3).

`header` parses the header; the `gguf` package dequantizes one tensor at a time, which is converted
to Hugging Face's layout here.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.architectures import ARCHITECTURES
from edgelm.checkpoint.gguf.blocks import GRIDS, level_bits, read_levels
from edgelm.checkpoint.gguf.config import read_config
from edgelm.checkpoint.gguf.header import TensorInfo
from edgelm.checkpoint.gguf.names import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, hf_name
from edgelm.checkpoint.gguf.parts import GgufPart, open_parts
from edgelm.checkpoint.quantized.packed import Levels, PackedMatrix
from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.quantize.precision import Int4, Int8

if TYPE_CHECKING:
    import torch

_F32, _F16 = 0, 1  # ggml types that need no dequantizing
_FLOATS = (_F32, _F16, 28, 30)  # with F64 and BF16
_VALUES_AT_ONCE = 1 << 17
_T = TypeVar("_T", np.float32, np.uint8)


class _Stored(NamedTuple):
    """A tensor: its name for messages, the part that contains it, and its place there."""

    name: str
    part: GgufPart
    info: TensorInfo


class GgufFile:
    """A mapped GGUF file: metadata, configuration and tensors under Hugging Face names.

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
                f"unknown architecture {self.architecture!r} in {path.name}; known in GGUF files: "
                f"{', '.join(sorted(ARCHITECTURES))}; for other families use the safetensors folder"
            )
        self._row = ARCHITECTURES[self.architecture]
        self._tensors: dict[str, _Stored] = {}
        self._factors: dict[str, _Stored] = {}
        for part in parts:
            for name, info in part.header.tensors.items():
                self._place(name, part, info)
        self.shapes = {name: stored.info.shape for name, stored in self._tensors.items()}

    def config(self) -> dict[str, Any]:
        """The equivalent `config.json`."""
        factors = {name: self._read_factors(stored) for name, stored in self._factors.items()}
        return read_config(self.metadata, self.architecture, self.shapes, factors)

    @property
    def read_by_transformers(self) -> bool:
        """Whether transformers itself reads files of this architecture."""
        return self._row.by_transformers

    def check_tensors(self) -> None:
        """Raise BadCheckpoint unless every tensor is inside its file and can be dequantized."""
        stored = [*self._tensors.values(), *self._factors.values()]
        spans: dict[Path, list[tuple[int, int, str]]] = {path: [] for path in self.paths}
        for one in stored:
            start = _start(one)
            spans[one.part.path].append((start, start + _stored_bytes(one), one.name))
        for path, ends in spans.items():
            ends.sort()
            for (_, end, name), (start, _, other) in pairwise(ends):
                if start < end:
                    raise BadCheckpoint(
                        f"{path}: the tensors {name} and {other} overlap; download it again"
                    )

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantized to fp32, in Hugging Face's layout."""
        stored = self._tensors[name]
        start, size = _start(stored), _stored_bytes(stored)
        shape, kind = stored.info.shape, stored.info.ggml_type
        if kind in (_F32, _F16):
            raw = np.frombuffer(stored.part.data, dtype=np.uint8, count=size, offset=start)
            values = raw.view("<f4" if kind == _F32 else "<f2").astype(np.float32)
        else:
            values = _dequantize(_rows(stored), kind)
        return self._from_ggml(name, values.reshape(shape))

    def read_rows(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Some rows of a matrix in Hugging Face's layout, such as the embeddings of tokens.

        Only these rows are dequantized.
        """
        stored = self._tensors[name]
        if stored.info.ggml_type in (_F32, _F16) or self._rows_move(name):
            return self.read(name)[rows]
        values = _dequantize(_rows(stored)[rows], stored.info.ggml_type)
        return self._from_ggml(name, values.reshape(len(rows), *stored.info.shape[1:]))

    def packed(self) -> dict[str, PackedMatrix]:
        """The quantized matrices."""
        return {
            name: self._packed(name, stored)
            for name, stored in self._tensors.items()
            if stored.info.ggml_type not in _FLOATS and len(stored.info.shape) == 2
        }

    def _packed(self, name: str, stored: _Stored) -> PackedMatrix:
        from gguf import GGMLQuantizationType

        number = stored.info.ggml_type
        precision = GRIDS.get(number)

        def read() -> Levels:
            return _Values(self, name) if precision is None else self._grid(name, stored, precision)

        return PackedMatrix(
            stored.info.shape,
            f"GGUF, {GGMLQuantizationType(number).name}",
            (stored.part.path,),
            read,
            lambda: precision,
            level_bits(number),
        )

    def _grid(self, name: str, stored: _Stored, precision: Int4 | Int8) -> Levels:
        import torch

        from edgelm.checkpoint.quantized.integers import integer_grid

        levels, scales = read_levels(_rows(stored), stored.info.ggml_type)
        return integer_grid(
            torch.from_numpy(self._reordered(name, levels)),
            torch.from_numpy(self._reordered(name, scales)),
            None,
            bits=4 if isinstance(precision, Int4) else 8,
            group_size=precision.group_size,
        )

    def _place(self, name: str, part: GgufPart, info: TensorInfo) -> None:
        if name in (ROPE_FREQS, ROPE_SHORT, ROPE_LONG):
            self._factors[name] = _Stored(name, part, info)
            return
        ours = hf_name(self.architecture, name)
        if ours in self._tensors:
            raise BadCheckpoint(
                f"{part.path}: {name} and {self._tensors[ours].name} are the same tensor; "
                "convert the model again"
            )
        if ours.endswith(".conv.conv.weight") and len(info.shape) == 2:
            channels, taps = info.shape
            info = info._replace(shape=(channels, 1, taps))
        title = name if ours == name else f"{ours} ({name})"
        self._tensors[ours] = _Stored(title, part, info)

    def _read_factors(self, stored: _Stored) -> npt.NDArray[np.float32]:
        if stored.info.ggml_type != _F32 or len(stored.info.shape) != 1:
            raise BadCheckpoint(
                f"{stored.part.path}: {stored.name} must be a vector of type F32; convert the "
                "model again"
            )
        count, start = stored.info.shape[0], _start(stored)
        _check_end(stored, start + 4 * count)
        return np.frombuffer(stored.part.data, "<f4", count, start)

    def _from_ggml(self, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        tensor = self._reordered(name, tensor)
        if self._row.norm_plus_one and "norm" in name:
            return tensor - 1.0
        return tensor

    def _reordered(self, name: str, tensor: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """Rows in Hugging Face's order."""
        if not self._rows_move(name):
            return tensor
        queries = ".self_attn.q_proj." in name
        return self._unpermute(name, tensor, "head_count" if queries else "head_count_kv")

    def _rows_move(self, name: str) -> bool:
        """Whether llama.cpp stores the rows in another order."""
        moved = (".self_attn.q_proj.", ".self_attn.k_proj.")
        return self._row.permuted and any(part in name for part in moved)

    def _unpermute(self, name: str, tensor: npt.NDArray[_T], key: str) -> npt.NDArray[_T]:
        # llama.cpp interleaves the two rotary halves of a head; Hugging Face separates them.
        prefix = f"{self.architecture}.attention."
        heads = self.metadata.integer(f"{prefix}head_count", least=1)
        heads = self.metadata.integer(f"{prefix}{key}", heads, least=1)
        if heads is None or tensor.shape[0] % (2 * heads):
            raise BadCheckpoint(
                f"{self.path}: {name} has {tensor.shape[0]} rows, which are not {heads} heads of "
                "an even size; convert the model again"
            )
        pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)


class _Values(NamedTuple):
    """A matrix in a format that is not a grid."""

    file: GgufFile
    name: str

    def dequantize(self) -> "torch.Tensor":
        """The matrix, fp32."""
        import torch

        return torch.from_numpy(self.file.read(self.name))


def _rows(stored: _Stored) -> npt.NDArray[np.uint8]:
    """The bytes of a quantized tensor, uint8 [rows, bytes of a row]."""
    raw = np.frombuffer(
        stored.part.data, dtype=np.uint8, count=_stored_bytes(stored), offset=_start(stored)
    )
    return raw.reshape(int(np.prod(stored.info.shape[:-1])), -1)


def _start(stored: _Stored) -> int:
    header = stored.part.header
    if stored.info.offset % header.alignment:
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} begins at byte {stored.info.offset} of the data, "
            f"expected a multiple of {header.alignment}; download it again"
        )
    return header.data_offset + stored.info.offset


def _check_end(stored: _Stored, end: int) -> None:
    size = len(stored.part.data)
    if end > size:
        raise BadCheckpoint(
            f"{stored.part.path} is truncated: {stored.name} ends at byte {end}, the file has "
            f"{size}; download it again"
        )


def _stored_bytes(stored: _Stored) -> int:
    """Size of a tensor in bytes, after checking that it is complete and can be dequantized."""
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    number, shape = stored.info.ggml_type, stored.info.shape
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} is stored as ggml type {number}, which the "
            "installed gguf package does not know; upgrade it (pip install -U gguf)"
        ) from None
    if not _can_dequantize(number):
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} is stored as {kind.name}, which the installed gguf "
            "package cannot dequantize; upgrade it (pip install -U gguf), or use another "
            "quantization of the model or its safetensors folder"
        )
    if shape[-1] % block:
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} has rows of {shape[-1]} elements, which are not "
            f"whole blocks of {kind.name} ({block}); convert the model again"
        )
    size = int(np.prod(shape, dtype=object)) // block * block_bytes
    _check_end(stored, _start(stored) + size)
    return size


def _can_dequantize(number: int) -> bool:
    """Try one block of zeros: the gguf package cannot dequantize all types that it knows."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if number in (_F32, _F16):
        return True
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    try:
        _dequantize(np.zeros((1, block_bytes), dtype=np.uint8), number)
    except NotImplementedError:
        return False
    return True


def _dequantize(rows: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.float32]:
    """The values of whole blocks, in order.

    The gguf package converts 16 rows at a time, which takes up to twice as long for short rows:
    it is given one long row of blocks at a time, whose arrays still fit into a cache.
    """
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rows.reshape(-1, block_bytes)
    values = np.empty((len(blocks), block), dtype=np.float32)
    step = _VALUES_AT_ONCE // block
    with np.errstate(all="ignore"):  # scales of zero, or a damaged file
        for first in range(0, len(blocks), step):
            part = blocks[first : first + step]
            values[first : first + step] = dequantize(part.reshape(1, -1), kind).reshape(-1, block)
    return values
