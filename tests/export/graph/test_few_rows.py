"""A run of a few tokens over an int8 cache computes what single runs compute."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgelm.export.graph.attention import ort_attention
from edgelm.export.graph.attention.ort_attention import MAX_VERIFIED
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import PRECISIONS
from edgelm.speculation import SIZES
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import build_session

TOKENS = np.random.default_rng(5).integers(3, 120, 40)


def _scaling(source: Tiny) -> KvScaling:
    seen = calibrate(Reference(source.checkpoint), torch.from_numpy(TOKENS)[None])
    return KvScaling.from_calibration(source.checkpoint.spec, seen.kv_absmax)


def test_every_size_is_below_the_branch() -> None:
    assert max(SIZES) == MAX_VERIFIED


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "lfm2", "qwen3.5"])
def test_rows_equal_single_runs(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    source = tiny(name)
    scaling = _scaling(source)
    with build_session(
        source.checkpoint, tmp_path / "graph", PRECISIONS["int8"], kv="int8", scaling=scaling
    ) as session:
        session.advance(TOKENS[:20])
        alone = np.concatenate([session.advance(TOKENS[n : n + 1]).copy() for n in range(20, 36)])
        for size in SIZES:
            session.rewind(20)
            rows = session.verify(TOKENS[20 : 20 + size]).copy()
            session.keep(20)
            # Attention over the dequantized cache differs by a hundredth: new rows are not rounded.
            limit = 1e-4 * np.abs(alone).max()
            np.testing.assert_allclose(rows, alone[:size], rtol=0, atol=limit)


def test_no_sinks_change_rounding_only(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny("llama")
    rows = []
    for least, folder in ((1, tmp_path / "with"), (99, tmp_path / "without")):
        monkeypatch.setattr(ort_attention, "_MIN_WHOLE_HEADS", least)
        with build_session(
            source.checkpoint, folder, kv="int8", scaling=_scaling(source)
        ) as session:
            session.advance(TOKENS[:20])
            rows.append(session.advance(TOKENS[20:30], logits=10).copy())
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-5 * np.abs(rows[1]).max())


@pytest.mark.parametrize("fewer", [False, True])
def test_only_the_int8_kernel_of_many_heads_has_sinks(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewer: bool
) -> None:
    source = tiny("llama")
    heads = source.checkpoint.spec.num_attention_heads
    monkeypatch.setattr(ort_attention, "_MIN_WHOLE_HEADS", heads + fewer)
    with build_session(source.checkpoint, tmp_path / "graph", kv="int8", scaling=_scaling(source)):
        graph = onnx.load(tmp_path / "graph" / "model.onnx", load_external_data=False).graph
    found = {"then_branch": set[str](), "else_branch": set[str]()}
    for name, node in _attention_nodes(graph):
        found[name].add(node.input[11] if len(node.input) > 11 else "")
    assert found["then_branch"] == {""}
    [name] = found["else_branch"]
    if fewer:
        assert name == ""
    else:
        sinks = next(one for one in graph.initializer if one.name == name)
        assert onnx.numpy_helper.to_array(sinks).tolist() == [np.finfo(np.float32).min] * heads


def test_a_long_run_takes_the_other_branch(tiny: TinyFactory, tmp_path: Path) -> None:
    source = tiny("llama")
    with build_session(
        source.checkpoint,
        tmp_path / "graph",
        PRECISIONS["int8"],
        kv="int8",
        scaling=_scaling(source),
    ):
        graph = onnx.load(tmp_path / "graph" / "model.onnx", load_external_data=False).graph
    condition = next(node for node in graph.node if node.name == "is_prefill")
    limits = {
        one.name: onnx.numpy_helper.to_array(one).tolist()
        for one in graph.initializer[:99]
        if one.name in condition.input
    }
    assert list(limits.values()) == [[MAX_VERIFIED]]


def _attention_nodes(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """The branches of every layer's attention, and the node in each."""
    for node in graph.node:
        for branch in (one for one in node.attribute if one.name.endswith("_branch")):
            for inner in branch.g.node:
                if inner.op_type == "GroupQueryAttention":
                    yield branch.name, inner
