"""Seeded changes of a whole GGUF file: it reads, or is refused by an error of edgelm."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edgelm.checkpoint.gguf.parts import open_parts
from edgelm.checkpoint.gguf.tokenizer import gguf_tokenizer
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import EdgeLMError
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama", vocab_size=VOCAB, num_hidden_layers=1)
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    return write_gguf(model, path, "Q8_0", tokenizer=tiny_tokenizer())


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
def test_changed_headers(whole: Path, tmp_path: Path, seed: int) -> None:
    content = whole.read_bytes()
    header = open_parts(whole)[0].header
    # Half of the changes go to what comes before and after the long lists of tokens.
    ends = (header.data_offset, 1200)
    random = np.random.default_rng(seed)
    path = tmp_path / "m.gguf"
    for number in range(75):
        begin = 0 if number % 4 else header.data_offset - 900
        part = content[:begin], content[begin:]
        end = ends[number % 2] - begin if begin == 0 else 900
        path.write_bytes(part[0] + changed(part[1], end, random))
        with suppress(EdgeLMError):
            read_all(path)
