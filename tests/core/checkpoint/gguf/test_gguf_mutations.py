"""Seeded changes of a whole GGUF file: it reads, or is refused by an error of edgelm."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.checkpoint.gguf.parts import open_parts
from edgelm.checkpoint.gguf.tokenizer import gguf_tokenizer
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import EdgeLMError
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer

LAYERS = ["linear_attention", "full_attention"]


def whole(folder: Path, name: str, kind: str, **over: Any) -> Path:
    model = tiny_model(name, vocab_size=VOCAB, **over)
    return write_gguf(model, folder / "whole.gguf", kind, tokenizer=tiny_tokenizer())


def read_all(path: Path) -> None:
    read_spec(path)
    checkpoint = open_checkpoint(path)
    for name in checkpoint.shapes:
        checkpoint.tensor(name)
    gguf_tokenizer(open_parts(path)[0].metadata)


def changed(content: bytes, end: int, random: np.random.Generator) -> bytes:
    """Bytes of the header set, runs of it overwritten, removed or repeated."""
    copy = bytearray(content)
    at, length = int(random.integers(0, end)), int(random.integers(1, 9))
    match int(random.integers(0, 5)):
        case 0:
            copy[at] = random.integers(0, 256)
        case 1:
            copy[at : at + length] = b"\xff" * length
        case 2:
            copy[at : at + length] = bytes(length)
        case 3:
            del copy[at : at + length]
        case _:
            copy[at:at] = copy[at : at + length]
    return bytes(copy)


@pytest.mark.parametrize("seed", range(4))
def test_changed_headers(tmp_path: Path, seed: int) -> None:
    check_changes(whole(tmp_path, "llama", "Q8_0", num_hidden_layers=1), seed, 75)


@pytest.mark.parametrize(
    ("name", "kind", "over"),
    [
        ("gpt-oss", "MXFP4", {"num_hidden_layers": 1}),
        ("qwen3.5", "Q8_0", {"num_hidden_layers": 2, "layer_types": LAYERS}),
        ("granite-hybrid-moe", "F32", {"num_hidden_layers": 2, "layer_types": LAYERS}),
        ("gemma3n", "Q8_0", {"vocab_size_per_layer_input": VOCAB}),
        ("gemma4", "Q8_0", {"vocab_size_per_layer_input": VOCAB}),
    ],
)
def test_changed_headers_of_rearranged_tensors(
    tmp_path: Path, name: str, kind: str, over: dict[str, Any]
) -> None:
    check_changes(whole(tmp_path, name, kind, **over), 0, 50)


def check_changes(whole: Path, seed: int, count: int) -> None:
    """Change a file's header again and again, and read it."""
    content = whole.read_bytes()
    header = open_parts(whole)[0].header
    # Half of the changes go to what comes before and after the long lists of tokens.
    ends = (header.data_offset, 1200)
    random = np.random.default_rng(seed)
    path = whole.with_name("m.gguf")
    for number in range(count):
        begin = 0 if number % 4 else header.data_offset - 900
        part = content[:begin], content[begin:]
        end = ends[number % 2] - begin if begin == 0 else 900
        path.write_bytes(part[0] + changed(part[1], end, random))
        with suppress(EdgeLMError):
            read_all(path)
