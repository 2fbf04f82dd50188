"""Bytes and operations of a decoder, counted by hand on the two-layer one of test_spec."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.cost_model.work import Cache, Work, work_of
from edgelm.spec.decoder import DecoderSpec
from tests.core.spec.test_decoder import CONFIG, EMBEDDING, LINEAR

SPEC = DecoderSpec.from_hf(CONFIG)
TIED = DecoderSpec.from_hf(CONFIG | {"tie_word_embeddings": True})
# The last layer sees eight tokens, the first one all.
HYBRID = msgspec.structs.replace(
    SPEC, layers=(SPEC.layers[0], msgspec.structs.replace(SPEC.layers[1], window=8))
)


def work(spec: DecoderSpec = SPEC, **over: Any) -> Work:
    return work_of(spec, **{"linear_bits": 4, "head_bits": 16, "kv_bytes": 2} | over)


def test_matrices_by_hand() -> None:
    counted = work()
    assert counted.layers == counted.attention_layers == 2
    assert (counted.linear_parameters, counted.head_parameters) == (LINEAR, EMBEDDING)
    assert counted.linear_bytes == LINEAR / 2
    assert counted.head_bytes == 2 * EMBEDDING
    # Four query heads of two in each of two layers.
    assert counted.attention_width == 2 * 8


def test_the_embedding_is_resident_but_not_read() -> None:
    untied, tied = work(), work(TIED)
    assert untied.resident_bytes == LINEAR / 2 + 2 * 2 * EMBEDDING
    assert tied.resident_bytes == LINEAR / 2 + 2 * EMBEDDING
    assert untied.prompt_bytes(1) == tied.prompt_bytes(1) == LINEAR / 2 + 2 * EMBEDDING


@pytest.mark.parametrize("kv_bytes", [1, 2, 4], ids=["int8", "fp16", "fp32"])
def test_cache_of_a_token_by_hand(kv_bytes: int) -> None:
    # Keys and values of two heads of two, in two layers.
    assert work(kv_bytes=kv_bytes).caches == (Cache(2 * 2 * 2 * 2 * kv_bytes, None),)


@pytest.mark.parametrize(
    ("window", "depth", "tokens"),
    [(None, 0, 0), (None, 10, 10), (4, 3, 3), (4, 4, 4), (4, 1000, 4)],
    ids=["empty", "all", "within", "full-window", "beyond"],
)
def test_cache_reads_no_more_than_its_window(window: int | None, depth: int, tokens: int) -> None:
    assert Cache(32, window).bytes(depth) == 32 * tokens


def test_layers_with_and_without_a_window() -> None:
    mixed = work(HYBRID)
    assert mixed.caches == (Cache(16, None), Cache(16, 8))
    assert mixed.cache_bytes(5) == work().cache_bytes(5) == 32 * 5
    assert mixed.cache_bytes(20) == 16 * 20 + 16 * 8


def test_attention_pairs_by_hand() -> None:
    # Four tokens: a triangle of 8; with a window of two a band of 6. Sixteen queries wide.
    assert work().attention_pairs(4) == 8 * 16
    narrow = msgspec.structs.replace(work(), caches=(Cache(32, 2),))
    assert narrow.attention_pairs(4) == 6 * 16
    mixed = msgspec.structs.replace(work(), caches=(Cache(16, None), Cache(16, 2)))
    assert mixed.attention_pairs(4) == (8 + 6) / 2 * 16
    assert msgspec.structs.replace(work(), caches=()).attention_pairs(4) == 0


@pytest.mark.parametrize("window", [64, 512, 9999])
def test_attention_pairs_are_the_counted_ones(window: int) -> None:
    counted = sum(min(token, window) for token in range(1, 513))
    pairs = msgspec.structs.replace(work(), caches=(Cache(1, window),)).attention_pairs(512)
    assert pairs / 16 == pytest.approx(counted, rel=0.01)


def test_a_prompt_touches_more_experts_than_a_token() -> None:
    # Four experts of 100 bytes, one of them active; 50 bytes and a head of 10 beside them.
    experts = msgspec.structs.replace(
        work(), linear_bytes=150, head_bytes=10, active_experts=1, experts=4, expert_bytes=400
    )
    assert experts.prompt_bytes(1) == pytest.approx(50 + 100 + 10)
    assert experts.prompt_bytes(2) == pytest.approx(50 + 400 * (1 - 0.75**2) + 10)
    assert experts.prompt_bytes(1000) == pytest.approx(50 + 400 + 10)


def test_dense_prompts_read_every_weight_once() -> None:
    assert work().prompt_bytes(1) == work().prompt_bytes(4096)
