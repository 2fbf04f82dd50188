"""A GGUF file reads as the Hugging Face checkpoint that it was converted from."""

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edgelm.checkpoint.gguf.parts import open_parts
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.errors import BadCheckpoint, UnknownName
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.conftest import TinyFactory

FAMILIES = ["llama", "llama-untied", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
# Of the largest weight: fp16 rounds to 11 bits, Q8_0 to 127 steps of a block's largest.
TOLERANCE = {"F32": 1e-6, "F16": 2.0**-11, "Q8_0": 0.5 / 127 + 2.0**-11}


@pytest.fixture(scope="module")
def file(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    return write_gguf(tiny("llama-untied").hf, path, "Q8_0")


def header_of(file: Path) -> int:
    """Where the tensor infos end: just before the aligned data."""
    return open_parts(file)[0].header.data_offset - 32


@pytest.mark.parametrize("kind", sorted(TOLERANCE))
@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_hugging_faces(tiny: TinyFactory, tmp_path: Path, name: str, kind: str) -> None:
    source = tiny(name)
    checkpoint = open_checkpoint(write_gguf(source.hf, tmp_path / "m.gguf", kind))
    assert checkpoint.shapes == source.checkpoint.shapes
    for tensor in checkpoint.shapes:
        expected = source.checkpoint.tensor(tensor)
        limit = TOLERANCE[kind] * float(expected.abs().max())
        torch.testing.assert_close(checkpoint.tensor(tensor), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2", "qwen3", "phi3", "gemma2"])
def test_spec_is_that_of_the_config(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    # llama.cpp takes 1/sqrt(head_dim) for every Gemma 2 but the one of 27B; no key says so.
    over: dict[str, Any] = {"query_pre_attn_scalar": 16} if name == "gemma2" else {}
    over |= {"sliding_window": None} if name == "phi3" else {}
    model = tiny_model(name, **over)
    ours = open_checkpoint(write_gguf(model, tmp_path / "m.gguf")).spec
    expected = type(ours).from_hf(model.config.to_dict())
    assert ours.rms_norm_eps == pytest.approx(expected.rms_norm_eps, rel=1e-6)  # stored in fp32
    rounded = msgspec.structs.replace(ours, rms_norm_eps=expected.rms_norm_eps)
    assert msgspec.to_builtins(rounded) == msgspec.to_builtins(expected)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2", "gemma2"])
def test_tensors_are_those_of_transformers_reader(
    tiny: TinyFactory, tmp_path: Path, name: str, kind: str
) -> None:
    source = tiny(name)
    path = write_gguf(source.hf, tmp_path / "m.gguf", kind)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=source.hf)
    checkpoint = open_checkpoint(path)
    assert set(theirs["tensors"]) == set(checkpoint.shapes)
    for tensor, values in theirs["tensors"].items():
        torch.testing.assert_close(checkpoint.tensor(tensor), values.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [32, 96, 1000])
def test_tensors_do_not_depend_on_how_many_values_are_dequantized_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    whole = open_checkpoint(file)
    monkeypatch.setattr("edgelm.checkpoint.gguf.stored_tensor._VALUES_AT_ONCE", values)
    in_parts = open_checkpoint(file)
    for tensor in whole.shapes:
        assert torch.equal(in_parts.tensor(tensor), whole.tensor(tensor))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_are_those_of_the_matrix(
    tiny: TinyFactory, tmp_path: Path, name: str, kind: str
) -> None:
    checkpoint = open_checkpoint(write_gguf(tiny(name).hf, tmp_path / "m.gguf", kind))
    for tensor in (name for name, shape in checkpoint.shapes.items() if len(shape) == 2):
        rows = torch.tensor([3, 0, 3, checkpoint.shapes[tensor][0] - 1])
        expected = checkpoint.tensor(tensor)[rows]
        assert torch.equal(checkpoint.rows(tensor, rows), expected)
        assert torch.equal(open_checkpoint(checkpoint.path).rows(tensor, rows), expected)
    none = checkpoint.rows("model.embed_tokens.weight", torch.tensor([], dtype=torch.int64))
    assert none.shape == (0, checkpoint.shapes["model.embed_tokens.weight"][1])


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "folder"])
@pytest.mark.parametrize("row", [-1, 128])
def test_rows_out_of_range_are_not_other_bytes_of_the_file(
    tiny: TinyFactory, tmp_path: Path, kind: str, row: int
) -> None:
    source = tiny("llama")
    checkpoint = source.checkpoint
    if kind != "folder":
        checkpoint = open_checkpoint(write_gguf(source.hf, tmp_path / "m.gguf", kind))
    name = "model.embed_tokens.weight"
    checkpoint.tensor(name)  # checked, so that rows are read alone
    with pytest.raises(IndexError, match="has 128 rows"):
        checkpoint.rows(name, torch.tensor([0, row]))


def test_what_is_known_of_the_file(tiny: TinyFactory, tmp_path: Path) -> None:
    path = write_gguf(tiny("llama").hf, tmp_path / "m.gguf", metadata={"general.license": "mit"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.is_gguf
    assert checkpoint.license == "mit"
    assert checkpoint.weight_files == (path,)
    assert [checkpoint.config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 0]


def test_rope_scaling(tiny: TinyFactory, tmp_path: Path) -> None:
    metadata: dict[str, str | float] = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
    }
    path = write_gguf(tiny("llama").hf, tmp_path / "m.gguf", metadata=metadata)
    rope = open_checkpoint(path).spec.layers[0].rope
    assert rope is not None
    assert (rope.scaling["rope_type"], rope.scaling["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_cut_off_in_the_header(file: Path, tmp_path: Path, part: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[: int(part * header_of(file))])
    with pytest.raises(BadCheckpoint, match=r"cut\.gguf ends inside its header; download it"):
        open_checkpoint(path)


def test_cut_off_in_the_data(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    data = file.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    def read_all() -> None:
        checkpoint: Checkpoint = open_checkpoint(path)
        for name in checkpoint.shapes:
            checkpoint.tensor(name)

    message = rf"cut\.gguf is truncated: .* ends at byte \d+, the file has {len(data) // 2}"
    with pytest.raises(BadCheckpoint, match=message):
        read_all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
        (
            b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
            "GGUF version 1 is not supported, expected 2 or 3",
        ),
        (
            b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
            "big-endian GGUF files are not supported",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ4sI", 3, 0, 1, 4, b"what", 77) + bytes(8),
            "metadata of unknown type 77",
        ),
    ],
    ids=["empty", "zip", "version-1", "big-endian", "unknown-metadata"],
)
def test_no_gguf_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "what.gguf"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message) as caught:
        open_checkpoint(path)
    assert "what.gguf" in str(caught.value)


def patched(file: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy with one change of the same length."""
    data = file.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) >= 1
    target.write_bytes(data.replace(old, new, 1))
    return target


def test_unknown_architecture_lists_the_known(file: Path, tmp_path: Path) -> None:
    value = struct.pack("<Q", 5)  # the length before the name
    path = patched(file, tmp_path / "m.gguf", value + b"llama", value + b"bloom")
    message = r"unknown architecture 'bloom' in m\.gguf; known in GGUF files: apertus, arcee, c"
    with pytest.raises(UnknownName, match=message):
        open_checkpoint(path)


def test_missing_tensor(file: Path, tmp_path: Path) -> None:
    path = patched(file, tmp_path / "m.gguf", b"blk.3.ffn_up.weight", b"blk.3.ffn_xx.weight")
    with pytest.raises(BadCheckpoint, match=r"first 'model\.layers\.3\.mlp\.up_proj\.weight'"):
        open_checkpoint(path)


def test_tensor_of_an_unheard_of_name(file: Path, tmp_path: Path) -> None:
    path = patched(file, tmp_path / "m.gguf", b"blk.3.ffn_up.weight", b"blk.3.ffn_up_weight")
    with pytest.raises(BadCheckpoint, match=r"first 'model\.layers\.3\.mlp\.up_proj\.weight'"):
        open_checkpoint(path)


def test_block_type_from_the_future_is_named(file: Path, tmp_path: Path) -> None:
    name = b"blk.3.ffn_up.weight" + struct.pack("<IQQ", 2, 64, 96)
    types = [struct.pack("<I", kind) for kind in (8, 200)]  # Q8_0, and one nobody knows yet
    path = patched(file, tmp_path / "m.gguf", name + types[0], name + types[1])
    with pytest.raises(BadCheckpoint, match=r"up_proj\.weight.*200"):
        open_checkpoint(path).tensor("model.layers.3.mlp.up_proj.weight")


def test_llama_heads_are_put_back_in_order(tmp_path: Path) -> None:
    """Worked by hand: a head of 4 rows is stored as 0 2 1 3."""
    model = tiny_model("llama", head_dim=4, num_attention_heads=2, num_key_value_heads=2)
    weight = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight.copy_(torch.arange(8.0)[:, None].expand_as(weight))
    path = write_gguf(model, tmp_path / "m.gguf")
    info = open_parts(path)[0].header.tensors["blk.0.attn_q.weight"]
    start = open_parts(path)[0].header.data_offset + info.offset
    stored = np.frombuffer(path.read_bytes(), np.float32, count=8 * 64, offset=start)
    assert stored.reshape(8, 64)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    read = open_checkpoint(path).tensor("model.layers.0.self_attn.q_proj.weight")
    assert read[:, 0].tolist() == list(range(8))
