"""A student whose layers differ, exported: every stage of the pipeline, and the compact bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.compress.model import save_model
from edgelm.export.pipeline import export_model
from edgelm.spec.layers.mixers import NoMixer
from tests.checkpoints.own_sizes import cut
from tests.checkpoints.tiny_chat import CONTEXT, save_tiny_chat
from tests.export.graphs import cpu_session
from tests.slow import slow_but


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_chat(tmp_path_factory.mktemp("student"))
    model = cut(AutoModelForCausalLM.from_pretrained(folder).eval())
    save_model(model, AutoTokenizer.from_pretrained(folder), folder, torch.float32)
    return folder


@pytest.mark.parametrize("precision", slow_but(("fp32", "int8", "auto"), ("fp32", "int8")))
def test_the_bundle_is_compact_and_passes_its_gate(
    student: Path, tmp_path: Path, precision: str
) -> None:
    manifest = export_model(student, tmp_path / "bundle", precision=precision)
    whole = export_model(
        save_tiny_chat(tmp_path / "whole"), tmp_path / "whole-bundle", precision=precision
    )
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert manifest.weight_bytes < whole.weight_bytes
    assert isinstance(manifest.spec.layers[0].mixer, NoMixer)
    assert [manifest.spec.mlp_size(layer) for layer in manifest.spec.layers] == [32, 96, 0, 96]
    assert len(manifest.graph.cache.layers) == 2
    tokens = np.arange(3, 43)
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(student).eval()
        expected = plain(torch.from_numpy(tokens)[None]).logits[0].numpy()
    with cpu_session(tmp_path / "bundle", manifest.graph, capacity=CONTEXT) as session:
        ours = session.advance(tokens, logits=len(tokens))
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    assert error < {"fp32": 1e-4, "int8": 0.1, "auto": 0.5}[precision]
