"""The TensorRT engine: its bookkeeping on a GPU of our own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edgelm.errors import BadInput, ContextFull, DoesNotFit, EdgeLMError
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.growth import rows_for
from edgelm.runtime.engines.session import Session
from tests.conftest import TinyFactory
from tests.export.graphs import CONTEXT
from tests.runtime.engines.tensorrt.conftest import build_source, open_device
from tests.runtime.engines.tensorrt.device import (
    TOKENS,
    Device,
    after_20_tokens,
    assert_same,
)


# CHUNK is 16: within one chunk, its border, several; and one row, a few, over chunks, all.
@pytest.mark.parametrize("count", [1, 16, 17, 50])
@pytest.mark.parametrize("logits", [1, 3, 17, 50])
def test_prefill_is_that_of_onnxruntime(device: Device, count: int, logits: int) -> None:
    with device.open() as session:
        ours = session.advance(TOKENS[:count], logits=logits)
        assert_same(ours, device.reference.advance(TOKENS[:count], logits=logits))
        assert session.length == count


def test_decoding_is_that_of_onnxruntime(device: Device) -> None:
    with device.open() as session:
        for both in (session, device.reference):
            both.advance(TOKENS[:20])
        for token in range(20, 40):
            ours, theirs = (
                one.advance(TOKENS[token : token + 1]) for one in (session, device.reference)
            )
            assert_same(ours, theirs)
        assert session.length == 40
        assert device.cuda.launches == 19  # the first step ran plainly


def test_a_growing_cache_computes_the_same(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with device.open() as session:
        for length, count in ((0, 3), (3, 1), (4, 1), (5, 1), (6, 20), (26, 1), (10, 50), (60, 1)):
            for one in (session, device.reference):
                one.rewind(length)
            ours, theirs = (one.advance(TOKENS[:count]) for one in (session, device.reference))
            assert_same(ours, theirs)
        assert session.capacity == CONTEXT
        assert session.cache_bytes == CONTEXT * device.token_bytes


def test_each_size_of_the_cache_has_a_graph(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with device.open() as session:
        sizes = []
        for at in range(40):
            session.advance(TOKENS[at : at + 1])
            sizes.append(session.cache_bytes // device.token_bytes)
        # The first step with 4, 8, 16, 32 and 64 rows runs plainly and is recorded.
        assert device.cuda.launches == 40 - 5
    rows = [CONTEXT if device.graph.cache.capacity else rows_for(n, CONTEXT) for n in range(1, 41)]
    assert sizes == rows


def test_no_memory_to_grow(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.graph.cache.capacity is not None:
        pytest.skip("its cache has its full size from the start")
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with device.open() as session:
        session.advance(TOKENS[:3])
        total, device.cuda.total = device.cuda.total, 0
        with pytest.raises(DoesNotFit, match=r"the key-value cache needs .* of GPU memory"):
            session.advance(TOKENS[3:20])
        assert session.length == 3
        device.cuda.total = total
        device.reference.advance(TOKENS[:3])
        assert_same(session.advance(TOKENS[3:4]), device.reference.advance(TOKENS[3:4]))
        assert_same(session.advance(TOKENS[4:20]), device.reference.advance(TOKENS[4:20]))


def test_prefill_between_tokens_and_rewinding(device: Device) -> None:
    with device.open() as session:
        for length, tokens in (
            (0, TOKENS[:30]),
            (30, TOKENS[30:31]),
            (31, TOKENS[31:32]),
            (11, TOKENS[::-1][:21]),
            (32, TOKENS[:1]),
            (5, TOKENS[5:6]),
            (6, TOKENS[6:40]),
            (0, TOKENS[9:10]),
        ):
            for one in (session, device.reference):
                one.rewind(length)
            assert_same(session.advance(tokens), device.reference.advance(tokens.copy()))
        assert session.length == 1


@pytest.mark.parametrize("profiles", [1, 2])
def test_the_decoding_context_has_the_last_profile(device: Device, profiles: int) -> None:
    with device.open(replace(device.engine, profiles=profiles)) as session:
        session.advance(TOKENS[:4])
        assert_same(session.advance(TOKENS[4:5]), _after(device.reference, 4))
    used = [context.profile for context in device.tensorrt.contexts]
    assert used == [0, profiles - 1] * len(device.graph.parts)


def _after(reference: Session, count: int) -> Any:
    reference.advance(TOKENS[:count])
    return reference.advance(TOKENS[count : count + 1])


def test_without_a_graph_where_the_context_cannot_be_recorded(device: Device) -> None:
    device.tensorrt.capturable = False
    with device.open() as session:
        for one in (session, device.reference):
            one.advance(TOKENS[:4])
        for at in range(4, 8):
            ours, theirs = (one.advance(TOKENS[at : at + 1]) for one in (session, device.reference))
            assert_same(ours, theirs)
    assert device.cuda.launches == 0


@pytest.mark.parametrize("at", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_without_a_graph_where_recording_fails(device: Device, at: str) -> None:
    device.cuda.status[at] = 900
    with device.open() as session:
        session.advance(TOKENS[:4])
        session.advance(TOKENS[4:5])
        assert_same(session.advance(TOKENS[5:6])[0], _after_two(device.reference))
    assert device.cuda.launches == 0


def _after_two(reference: Session) -> Any:
    _after(reference, 4)
    return reference.advance(TOKENS[5:6])[0]


def test_rtx_replays_by_itself_and_keeps_its_kernels(device: Device) -> None:
    rtx = replace(
        device.engine, name="tensorrt-rtx", version="1.7.1", runtime_cache="engines/kernels"
    )
    with device.open(rtx) as session:
        session.advance(TOKENS[:4])
        session.advance(TOKENS[4:5])
        assert_same(session.advance(TOKENS[5:6])[0], _after_two(device.reference))
    assert device.cuda.launches == 0
    prefill, decode = (context.how for context in device.tensorrt.contexts[:2])
    assert decode.cuda_graph_strategy == "whole"
    assert decode.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert not hasattr(prefill, "cuda_graph_strategy")
    assert decode.runtime_cache is prefill.runtime_cache
    assert (device.folder / "engines/kernels").read_bytes() == b"kernels"


def test_kernels_that_came_with_the_bundle_are_not_loaded(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    rtx = replace(device.engine, name="tensorrt-rtx", version="1.7.1", runtime_cache="foreign")
    (device.folder / "foreign").write_bytes(b"native code of somebody")
    with caplog.at_level("INFO"):
        device.open(rtx).close()
    assert "foreign was not written here; its kernels are compiled again" in caplog.text


def test_kernels_that_cannot_be_kept(device: Device) -> None:
    nowhere = replace(device.engine, name="tensorrt-rtx", runtime_cache="no/such/folder/kernels")
    device.open(nowhere).close()


def test_a_full_cache_and_what_was_not_there(device: Device) -> None:
    with device.open() as session:
        session.advance(TOKENS[:40])
        with pytest.raises(ContextFull, match="40 tokens and 25 more do not fit in a context of"):
            session.advance(TOKENS[:25])
        with pytest.raises(BadInput, match="cannot rewind to 41: the cache holds 40 tokens"):
            session.rewind(41)
        assert session.length == 40


def test_a_failed_run_leaves_the_length(device: Device) -> None:
    with device.open() as session:
        session.advance(TOKENS[:5])
        device.cuda.status["cudaStreamSynchronize"] = 700
        for count in (1, 20):
            with pytest.raises(EdgeLMError, match="CUDA error 700: illegal address"):
                session.advance(TOKENS[:count])
            assert session.length == 5
            device.cuda.queue.clear()
        device.cuda.status.clear()
        assert_same(session.advance(TOKENS[5:20]), after_20_tokens(device.reference))


def test_closing_frees_everything(device: Device) -> None:
    session = device.open()
    row = session.advance(TOKENS[:1])
    before = row.copy()
    session.close()
    session.close()
    # The row that was returned is the last thing that lives, until it goes.
    assert np.array_equal(row, before)
    assert sum(len(block) for block in device.cuda.blocks.values()) < 10_000
    del row, session
    assert not device.cuda.blocks


def test_it_is_a_session(device: Device) -> None:
    with device.open() as session:
        as_protocol: Session = session
        assert (as_protocol.length, as_protocol.capacity) == (0, CONTEXT)
        assert as_protocol.vocab_size == 128
        assert session.cache_bytes == CONTEXT * device.token_bytes


def test_a_profile_that_is_smaller_than_the_manifest_s_chunk(device: Device) -> None:
    device.tensorrt.chunk = 8  # the engine's, the manifest says 16
    with device.open() as session:
        assert_same(session.advance(TOKENS[:20]), after_20_tokens(device.reference))


def test_a_graph_with_a_batch_axis_runs_one_sequence(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    for segments in (1, 3):
        folder = tmp_path / str(segments)
        source = build_source(tiny("qwen3").checkpoint, folder, "standard", segments, batch=True)
        assert source.graph.takes_batches
        with open_device(source, monkeypatch) as device, device.open() as session:
            for length, count in ((0, 3), (3, 1), (4, 1), (5, 20), (25, 1)):
                for one in (session, device.reference):
                    one.rewind(length)
                ours, theirs = (one.advance(TOKENS[:count]) for one in (session, device.reference))
                assert_same(ours, theirs)
