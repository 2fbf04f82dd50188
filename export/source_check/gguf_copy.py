"""A GGUF file without its vocabulary, for readers that take seconds to parse one.

transformers reads a file's metadata with the `gguf` package, token by token and twice: half a
minute for 262,144 tokens. What is copied is copied byte for byte; nothing is read through edgelm.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgelm.checkpoint.gguf.header import TensorInfo
from edgelm.checkpoint.gguf.parts import GgufPart, open_parts

_LEFT_OUT = ("tokenizer.", "split.")
_STEP = 2**24  # bytes copied at a time


class _Tensor(NamedTuple):
    name: str
    part: GgufPart
    info: TensorInfo
    size: int


def copy_weights(path: Path, target: Path, *, depth: int) -> None:
    """Write one file with the metadata and tensors of a model, all its parts together.

    Args:
        path: a GGUF file, or any part of a split one.
        target: the file to write.
        depth: layers to copy; what belongs to none is copied too.
    """
    parts = open_parts(path)
    header = parts[0].header
    spans = [span for key, span in header.entries.items() if not key.startswith(_LEFT_OUT)]
    entries = [parts[0].read(span.start, span.stop - span.start).data for span in spans]
    tensors = list(_tensors(parts, depth))
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)))
        for entry in entries:
            file.write(entry)
        offset = 0
        for tensor in tensors:
            file.write(_description(tensor, offset))
            offset += -(-tensor.size // header.alignment) * header.alignment
        file.write(bytes(-file.tell() % header.alignment))
        for _, part, info, size in tensors:
            begin = part.header.data_offset + info.offset
            for at in range(begin, begin + size, _STEP):
                file.write(part.read(at, min(_STEP, begin + size - at)).data)
            file.write(bytes(-size % header.alignment))


def _tensors(parts: list[GgufPart], depth: int) -> Iterator[_Tensor]:
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    for part in parts:
        for name, info in part.header.tensors.items():
            if name.startswith("blk.") and int(name.split(".")[1]) >= depth:
                continue
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.ggml_type)]
            count = int(np.prod(info.shape, dtype=object))
            yield _Tensor(name, part, info, count // block * block_bytes)


def _description(tensor: _Tensor, offset: int) -> bytes:
    name, shape = tensor.name.encode("utf-8", "surrogateescape"), tensor.info.shape
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        + struct.pack("<IQ", tensor.info.ggml_type, offset)
    )
