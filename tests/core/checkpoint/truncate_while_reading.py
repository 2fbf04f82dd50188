"""Truncate a model's file after a tensor was read, use the tensor, and read the others.

python -m tests.core.checkpoint.truncate_while_reading SOURCE

Pages of a mapped file that are gone would end the process with SIGBUS.
"""

import os
import sys
from pathlib import Path

import pytest

from edgelm.checkpoint.gguf.parts import open_parts
from edgelm.checkpoint.gguf.stored_tensor import Stored, dequantize, quantized_rows
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.errors import BadCheckpoint

NAME = "model.layers.1.mlp.up_proj.weight"


def main() -> None:
    source = Path(sys.argv[1])
    checkpoint = open_checkpoint(source)
    tensor = checkpoint.tensor(NAME)
    before = tensor.clone()
    if checkpoint.is_gguf:
        [part] = open_parts(source)
        info = part.header.tensors["blk.1.ffn_up.weight"]
        raw = quantized_rows(Stored(NAME, part, info))
        values = dequantize(raw, info.ggml_type)
    for file in checkpoint.weight_files:
        os.truncate(file, 0)
    assert tensor.equal(before)
    if checkpoint.is_gguf:
        assert (dequantize(raw, info.ggml_type) == values).all()
    for name in checkpoint.shapes:
        _check_refused(checkpoint, name)


def _check_refused(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(BadCheckpoint, match="was truncated after it was opened"):
        checkpoint.read(name)  # without the check for changes that `tensor` begins with


if __name__ == "__main__":
    main()
