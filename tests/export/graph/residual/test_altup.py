"""Residual streams in other numbers and places than the published ones, and in older operators."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import PRECISIONS
from tests.checkpoints.models import tiny_model
from tests.export.graphs import CHUNK, CONTEXT, build_session, cpu_session

TOKENS = np.random.default_rng(5).integers(3, 128, 30)
VARIANTS: dict[str, dict[str, Any]] = {
    "another is active": {"altup_active_idx": 1},
    "three": {"altup_num_inputs": 3},
    "unscaled": {"altup_correct_scale": False},
    "alike": {"activation_sparsity_pattern": None, "intermediate_size": 96},
}


def expected(model: Any) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return logits


def assert_close(found: np.ndarray, logits: np.ndarray) -> None:
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_of_other_configurations(tmp_path: Path, variant: str) -> None:
    model = tiny_model("gemma3n", **VARIANTS[variant])
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with build_session(checkpoint, tmp_path / "graph") as session:
        assert_close(session.advance(TOKENS, logits=len(TOKENS)), expected(model))


def test_projections_of_almost_nothing_are_not_enlarged(tmp_path: Path) -> None:
    """Their mean square counts as 1e-5 at least, in the graph and in the source."""
    model = tiny_model("gemma3n")
    with torch.no_grad():
        for kind in (model.model.altup_projections, model.model.altup_unembed_projections):
            kind[1].weight.mul_(1e-5)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with build_session(checkpoint, tmp_path / "graph") as session:
        assert_close(session.advance(TOKENS, logits=len(TOKENS)), expected(model))
    reference, kept = Reference(checkpoint), list[torch.Tensor]()
    reference.layers[-1].register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.inference_mode():
        states = reference.hidden_states(torch.from_numpy(TOKENS)[None])
        torch.testing.assert_close(reference.final_states(kept[0]), states)


def test_operators_of_tensorrt_8(tmp_path: Path) -> None:
    model = tiny_model("gemma3n")
    model.save_pretrained(tmp_path)
    weights = Weights(open_checkpoint(tmp_path))
    form = GraphFormat("decomposed", "fp32", "fp32", CONTEXT, opset=17)
    assignment = dict.fromkeys(weights.groups(), PRECISIONS["fp32"])
    folder = tmp_path / "graph"
    folder.mkdir()
    written = write_graph(folder, Quantizer(weights, positive_scales=True), assignment, form)
    assert written.contract.opsets == {"ai.onnx": 17}
    with cpu_session(folder, written.contract, capacity=CONTEXT, chunk=CHUNK, threads=1) as session:
        assert_close(session.advance(TOKENS, logits=len(TOKENS)), expected(model))
