"""A GGUF file's metadata is read as llama.cpp reads it, or refused by the name of its key."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.spec.rope import rotary_frequencies
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.raw_gguf import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    array,
    file,
    pair,
    tensor,
    text,
)


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [("gemma2", 46, 64 // 4), ("gemma3", 62, 64 // 4), ("gemma2", 4, 24), ("gemma3", 7, 24)],
    ids=["gemma2-27b", "gemma3-27b", "gemma2", "gemma3"],
)
def test_attention_scale_of_gemma(tmp_path: Path, name: str, layers: int, expected: int) -> None:
    model = tiny_model(name, num_hidden_layers=layers, head_dim=24)
    spec = read_spec(write_gguf(model, tmp_path / "m.gguf"))
    assert spec.attention_scale == pytest.approx(expected**-0.5)


def test_windows_of_gemma_3(tmp_path: Path) -> None:
    spec = read_spec(write_gguf(tiny_model("gemma3"), tmp_path / "m.gguf"))
    assert [layer.window for layer in spec.layers] == [8, 8, 8, 8, 8, None, 8]
    bases = [layer.rope.theta for layer in spec.layers if layer.rope]
    assert bases == [10_000.0] * 5 + [1e6, 10_000.0]


def metadata(over: Mapping[str, bytes | None] | None = None) -> list[bytes]:
    """Entries of a whole small configuration; values are packed with their type before them."""
    values: dict[str, Any] = {
        "block_count": number(1),
        "context_length": number(64),
        "embedding_length": number(8),
        "feed_forward_length": number(8),
        "attention.head_count": number(2),
        "attention.layer_norm_rms_epsilon": fraction(1e-5),
    }
    values |= over or {}
    entries = [text(f"llama.{key}") + value for key, value in values.items() if value is not None]
    return [pair("general.architecture", STRING, text("llama")), *entries]


def number(value: int) -> bytes:
    return struct.pack("<Ii", INT32, value)


def fraction(value: float) -> bytes:
    return struct.pack("<If", FLOAT32, value)


def word(value: str) -> bytes:
    return struct.pack("<I", STRING) + text(value)


def numbers(*values: int) -> bytes:
    items = struct.pack(f"<{len(values)}i", *values)
    return struct.pack("<I", ARRAY) + array(INT32, len(values), items)


TENSORS = [tensor("token_embd.weight", [8, 4]), tensor("blk.0.ffn_up.weight", [8, 8], offset=128)]


def small(folder: Path, entries: list[bytes], tensors: list[bytes] = TENSORS) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(file(entries, tensors, data=bytes(4096)))
    return path


def test_a_small_file_is_read(tmp_path: Path) -> None:
    spec = read_spec(small(tmp_path, metadata()))
    assert (spec.num_hidden_layers, spec.head_dim, spec.vocab_size) == (1, 4, 4)


def test_layers_that_share_one_value(tmp_path: Path) -> None:
    over = {"attention.head_count_kv": numbers(1, 1), "block_count": number(1)}
    spec = read_spec(small(tmp_path, metadata(over)))
    assert spec.num_key_value_heads == 1


REFUSED = {
    "text": ({"block_count": word("one")}, r"llama\.block_count is 'one', expected a whole number"),
    "missing": ({"context_length": None}, r"lacks the key llama\.context_length"),
    "zero": ({"embedding_length": number(0)}, r"embedding_length is 0, expected a whole number fr"),
    "negative": ({"block_count": number(-1)}, r"block_count is -1, expected a whole number from 1"),
    "layers": (
        {"block_count": struct.pack("<II", UINT32, 2**31)},
        r"block_count is 2147483648, expected a whole number from 1",
    ),
    "more-layers-than-tensors": (
        {"block_count": number(2**20)},
        r"block_count is 1048576, the file has tensors of 1 layers",
    ),
    "per-layer": (
        {"attention.head_count_kv": numbers(1, 2)},
        r"head_count_kv differs from layer to layer, which is not supported",
    ),
    "empty-array": ({"attention.head_count": numbers()}, r"head_count is an array of 0 items"),
    "heads": ({"attention.head_count": fraction(2.0)}, r"head_count is 2\.0, expected a whole"),
    "epsilon": (
        {"attention.layer_norm_rms_epsilon": fraction(float("nan"))},
        r"rms_epsilon is nan, expected a number above 0",
    ),
    "theta": ({"rope.freq_base": word("x")}, r"rope\.freq_base is 'x', expected a number above"),
    "pooling": ({"pooling_type": number(3)}, r"an embedding model or a reranker"),
    "experts": ({"expert_count": number(8)}, r"expert_count is set, and mixture-of-experts models"),
    "odd-heads": ({"attention.key_length": number(5)}, r"values? of \d channels|heads of 5 chan"),
    "values": (
        {"attention.key_length": number(4), "attention.value_length": number(8)},
        r"heads with 4 key channels and 8 value channels are not supported",
    ),
    "rotated": ({"rope.dimension_count": number(2)}, r"rope\.dimension_count is 2, expected the"),
    "scaling": ({"rope.scaling.type": word("su")}, r"rope\.scaling\.type is 'su', known: none,"),
    "scaling-type": ({"rope.scaling.type": number(1)}, r"scaling\.type is 1, expected a string"),
    "factor": (
        {"rope.scaling.factor": fraction(-1.0)},
        r"rope\.scaling\.factor is -1\.0, expected a number above 0",
    ),
    "scale": ({"attention.scale": fraction(0.1)}, r"attention\.scale is set, and it is not supp"),
}


@pytest.mark.parametrize(("over", "message"), REFUSED.values(), ids=REFUSED)
def test_values_are_checked_where_they_are_used(
    tmp_path: Path, over: dict[str, bytes | None], message: str
) -> None:
    with pytest.raises(BadCheckpoint, match=message) as caught:
        read_spec(small(tmp_path, metadata(over)))
    assert "m.gguf" in str(caught.value)


@pytest.mark.parametrize("ids", [(), (1, 2), (0, 0)], ids=["empty", "two", "same"])
def test_token_ids_that_are_arrays(tmp_path: Path, ids: tuple[int, ...]) -> None:
    entry = text("tokenizer.ggml.eos_token_id") + numbers(*ids)
    path = small(tmp_path, [*metadata(), entry])
    if len(set(ids)) == 1:
        assert read_spec(path).vocab_size == 4
        return
    with pytest.raises(
        BadCheckpoint, match=r"eos_token_id is an array of . items, expected a whole"
    ):
        read_spec(path)


def test_a_vocabulary_alone_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="has no weights, only a vocabulary"):
        read_spec(small(tmp_path, metadata(), []))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    entries = [*metadata(), pair("general.type", STRING, text("adapter"))]
    with pytest.raises(BadCheckpoint, match="is a GGUF adapter"):
        read_spec(small(tmp_path, entries))


def test_an_architecture_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown architecture '' in m\.gguf"):
        read_spec(small(tmp_path, []))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            [("blk.0.ffn_up.weight", [8, 8], 5, 128)],
            r"ffn_up\.weight\) is stored as ggml type 5, which",
        ),
        ([("blk.0.ffn_up.weight", [8, 8], 24, 128)], r"stored as I8, which .* cannot dequantize"),
        ([("blk.0.ffn_up.weight", [256, 1], 15, 128)], "stored as Q8_K, which .* cannot dequant"),
        ([("blk.0.ffn_up.weight", [8, 8], 0, 129)], "begins at byte 129 .* a multiple of 32"),
        ([("blk.0.ffn_up.weight", [8, 8], 0, 96)], "token_embd.* and .*ffn_up.* overlap"),
        ([("blk.0.ffn_up.weight", [8, 8], 0, 4096)], r"truncated: .*ffn_up.* ends at byte \d+"),
        ([("blk.0.ffn_up.weight", [8, 8], 0, 2**63)], r"truncated: .*ffn_up.* ends at byte \d+"),
        ([("blk.0.ffn_up.weight", [8, 8], 8, 128)], "rows of 8 elements, .* blocks of Q8_0"),
    ],
    ids=["removed", "I8", "Q8_K", "unaligned", "overlap", "end", "offset-2^63", "part-of-a-block"],
)
def test_tensors_are_checked_before_any_work(
    tmp_path: Path, tensors: list[tuple[str, list[int], int, int]], message: str
) -> None:
    entries = [tensor("token_embd.weight", [8, 4]), *(tensor(*one) for one in tensors)]
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(small(tmp_path, metadata(), entries))


def llama3_factors(theta: float, dim: int, factor: float) -> np.ndarray[Any, Any]:
    """As convert_hf_to_gguf.py writes rope_freqs.weight for Llama 3.1 and later."""
    frequencies = theta ** (-np.arange(0, dim, 2) / dim)
    lengths = 2 * np.pi / frequencies
    smooth = (8192 / lengths - 1) / (4 - 1)
    middle = 1 / ((1 - smooth) / factor + smooth)
    low, high = 8192 / 1, 8192 / 4
    return np.where(lengths < high, 1.0, np.where(lengths > low, factor, middle)).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0], ids=["llama-3.1", "llama-3.2"])
def test_llama_3_rope_factors(tmp_path: Path, factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_model("llama", rope_parameters=scaling, head_dim=64, tie_word_embeddings=True)
    factors = llama3_factors(500_000.0, 64, factor)
    path = write_gguf(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    spec = open_checkpoint(path).spec
    expected = type(spec).from_hf(model.config.to_dict())
    assert spec.layers == expected.layers


def test_any_other_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    model = tiny_model("llama", rope_parameters=None)
    path = write_gguf(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    spec = open_checkpoint(path).spec
    rope = spec.layers[0].rope
    assert rope is not None
    found = rotary_frequencies(rope, 128, 128)
    plain = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(found, plain / factors, rtol=1e-6)


def test_phi_3_long_factors(tmp_path: Path) -> None:
    short, long = np.linspace(1, 2, 8), np.linspace(2, 9, 8)
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "original_max_position_embeddings": 64,
    }
    model = tiny_model(
        "phi3", rope_parameters=scaling, original_max_position_embeddings=64, sliding_window=None
    )
    attention = float(np.sqrt(1 + np.log(128 / 64) / np.log(64)))
    path = write_gguf(
        model,
        tmp_path / "m.gguf",
        metadata={"phi3.rope.scaling.attn_factor": attention},
        integers={"phi3.rope.scaling.original_context_length": 64},
        tensors={
            "rope_factors_short.weight": short.astype(np.float32),
            "rope_factors_long.weight": long.astype(np.float32),
        },
    )
    rope = open_checkpoint(path).spec.layers[0].rope
    expected = type(open_checkpoint(path).spec).from_hf(model.config.to_dict()).layers[0].rope
    assert rope is not None
    assert expected is not None
    for positions in (64, 128):
        ours = rotary_frequencies(rope, positions, 128)
        np.testing.assert_allclose(ours, rotary_frequencies(expected, positions, 128), rtol=1e-6)
    assert rope.scaling["attention_factor"] == pytest.approx(attention, rel=1e-6)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"rope_freqs.weight": np.ones(5)}, {}, r"rope_freqs\.weight must hold 8 numbers above 0"),
        ({"rope_freqs.weight": -np.ones(8)}, {}, r"rope_freqs\.weight must hold 8 numbers above 0"),
        ({"rope_factors_long.weight": np.ones(8)}, {}, r"lacks the tensor rope_factors_short"),
        (
            {"rope_freqs.weight": np.full(8, 2.0)},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
            "scales RoPE by the tensor",
        ),
    ],
    ids=["length", "negative", "one-of-two", "twice"],
)
def test_rope_factors_that_cannot_be(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    values = {name: factors.astype(np.float32) for name, factors in tensors.items()}
    path = write_gguf(tiny_model("llama"), tmp_path / "m.gguf", metadata=metadata, tensors=values)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(path)


def test_a_factor_without_a_type_is_linear(tmp_path: Path) -> None:
    metadata = {"llama.rope.scaling.factor": 4.0}
    path = write_gguf(tiny_model("llama"), tmp_path / "m.gguf", metadata=metadata)
    rope = read_spec(path).layers[0].rope
    assert rope is not None
    assert rope.scaling == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ({}, {}),
        ({"llama.rope.scaling.type": "none"}, {}),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, {}),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 1.0}, {}),
        ({}, {"rope_freqs.weight": np.ones(8, np.float32)}),
    ],
    ids=["nothing", "none", "linear", "yarn-by-1", "tensor"],
)
def test_a_factor_of_attention_without_yarn(
    tmp_path: Path, kind: dict[str, str | float], tensors: dict[str, Any]
) -> None:
    """llama.cpp multiplies queries and keys by it whatever the kind of scaling is."""
    metadata = kind | {"llama.rope.scaling.attn_factor": 1.0}
    path = write_gguf(tiny_model("llama"), tmp_path / "a.gguf", metadata=metadata, tensors=tensors)
    open_checkpoint(path)
    metadata |= {"llama.rope.scaling.attn_factor": 2.0}
    path = write_gguf(tiny_model("llama"), tmp_path / "b.gguf", metadata=metadata, tensors=tensors)
    with pytest.raises(BadCheckpoint, match=r"attn_factor is 2\.0, which is supported only with"):
        open_checkpoint(path)
