"""A run of a few tokens over an int8 cache computes what single runs compute."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

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
