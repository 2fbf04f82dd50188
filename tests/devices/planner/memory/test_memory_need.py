"""Memory beside weights and cache, worked by hand on the two-layer decoder of test_spec."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.memory.memory_need import export_bytes, workspace_bytes
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec
from tests.core.spec.test_decoder import CONFIG

SPEC = DecoderSpec.from_hf(CONFIG)
# A row of a chunk: queries 8, keys and values 4 each, four of hidden 8, three of 16.
ROW = 8 + 2 * 4 + 4 * 8 + 3 * 16
LOGITS = 32


def workspace(**over: Any) -> int:
    options: dict[str, Any] = {"kv": "fp32", "context": 48, "chunk": 16}
    return workspace_bytes(SPEC, **options | over)


def test_chunk_in_fp32_with_its_scores() -> None:
    # Sixteen rows, each with scores of four heads over 48 tokens, and the holes of two layers.
    assert workspace() == 1.25 * 4 * (16 * (ROW + 4 * 48) + LOGITS)


def test_scores_are_held_by_tiles() -> None:
    # Of 512 rows by four heads by 8,192 tokens only tiles are in memory at a time.
    assert workspace(context=8192, chunk=512) == 1.25 * (4 * (512 * ROW + LOGITS) + 6_000_000)


@pytest.mark.parametrize(("layers", "factor"), [(1, 1.125), (8, 2), (16, 3), (64, 3)])
def test_each_layer_leaves_holes_in_the_heap(layers: int, factor: float) -> None:
    stack = msgspec.structs.replace(SPEC, num_hidden_layers=layers, layers=SPEC.layers[:1] * layers)
    held = 4 * (16 * (ROW + 4 * 48) + LOGITS)
    assert workspace_bytes(stack, kv="fp32", context=48, chunk=16) == factor * held


def test_int8_cache_is_widened() -> None:
    # Four matrices of 48 tokens by two heads of two, in fp32.
    assert workspace(kv="int8") == workspace() + 1.25 * 4 * (4 * 48 * 4)


def test_chunk_is_no_longer_than_the_context() -> None:
    assert workspace(context=8, chunk=512) == workspace(context=8, chunk=8)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_engines_of_gpus_keep_16_bits_and_no_scores(name: str) -> None:
    expected = 2 * 16 * ROW + 4 * LOGITS
    assert workspace(engine=name) == workspace(engine=name, context=64) == expected


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_a_gpu_widens_a_layer_s_cache_to_16_bits(kv: KvType) -> None:
    # Keys and values of 48 tokens by two heads of two.
    assert workspace(engine="onnxruntime-cuda", kv=kv) == (
        workspace(engine="onnxruntime-cuda") + 2 * (2 * 48 * 4)
    )


def test_heads_too_wide_for_flash_attention_are_copied_for_each_query_head() -> None:
    def spec(dim: int, keys: int = 2) -> DecoderSpec:
        return DecoderSpec.from_hf(CONFIG | {"head_dim": dim, "num_key_value_heads": keys})

    def bytes_of(spec: DecoderSpec, engine: str, context: int = 48) -> int:
        return workspace_bytes(spec, kv="fp16", context=context, chunk=16, engine=engine)

    # Keys and values of 48 tokens by four heads, and a chunk's outputs in fp32.
    for dim, copied in ((512, 2 * 2 * (48 + 16) * 4 * 512), (256, 0)):
        both = [bytes_of(spec(dim), engine) for engine in ("onnxruntime-cuda", "tensorrt")]
        assert both[0] - both[1] == copied
    alone = spec(512, keys=4)
    assert bytes_of(alone, "onnxruntime-cuda") == bytes_of(alone, "tensorrt")


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_workspace_grows_with_context_and_chunk(kv: KvType) -> None:
    by_context = [workspace(kv=kv, context=tokens) for tokens in (16, 32, 64)]
    by_chunk = [workspace(kv=kv, chunk=rows) for rows in (1, 16, 48)]
    assert by_context == sorted(set(by_context))
    assert by_chunk == sorted(set(by_chunk))


def test_export_holds_the_largest_matrix_and_rows_of_logits() -> None:
    # Embedding 32 x 8 is as large as gate and up together; 768 rows of 32 logits in fp32.
    expected = 12 * 256 + 4 * 768 * 32 + 5000
    assert export_bytes(SPEC, total=5000) == expected
    wide = msgspec.structs.replace(SPEC, intermediate_size=32)
    assert export_bytes(wide, total=5000) - expected == 12 * 256
