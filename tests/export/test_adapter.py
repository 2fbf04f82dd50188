"""An export with a merged adapter: its weights, and what the manifest says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.checkpoint.adapter.lora import read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.export.source.reference import Reference
from tests.checkpoints.adapters import modules_of, random_factors, save_adapter
from tests.checkpoints.quantized_folders import AWQ, awq_parts, random_grid, replace_matrices
from tests.checkpoints.tiny_chat import CONTEXT
from tests.export.graphs import cpu_session

TOKENS = np.arange(4, 44)


def test_the_bundle_has_the_merged_weights(tiny_chat: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_chat)
    adapter = save_adapter(tmp_path / "pirate", random_factors(source, modules_of(source)))
    manifest = export_model(tiny_chat, tmp_path / "bundle", precision="fp32", adapter=adapter)
    assert manifest.lineage.adapter == "pirate"
    assert manifest.source is not None
    assert manifest.source.agrees
    assert manifest.source.weights == "edgelm"
    assert "with the adapter pirate merged" in (tmp_path / "bundle" / "README.md").read_text()
    with cpu_session(tmp_path / "bundle", manifest.graph, capacity=CONTEXT) as session:
        logits = torch.from_numpy(session.advance(TOKENS, logits=len(TOKENS)).copy())
    checkpoint = merged(source, read_lora(adapter))
    reference = Reference(checkpoint)
    expected = reference.logits(
        reference.hidden_states(torch.from_numpy(TOKENS)[None])[0], reference.head()
    )
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.slow
def test_an_adapter_of_a_quantized_model_is_quantized_with_it(
    tiny_chat: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_chat, tmp_path / "model")
    replace_matrices(folder, lambda _, weight: awq_parts(random_grid(weight)), AWQ)
    source = open_checkpoint(folder)
    adapter = save_adapter(tmp_path / "pirate", random_factors(source, modules_of(source)))
    manifest = export_model(folder, tmp_path / "bundle", adapter=adapter, gate="off")
    assert manifest.lineage.adapter == "pirate"


def test_another_models_adapter(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_checkpoint(tiny_chat)
    factors = random_factors(source, ["model.layers.0.mlp.up_proj"])
    narrow = {name: one[:, :4] if "A" in name else one for name, one in factors.items()}
    adapter = save_adapter(tmp_path / "pirate", narrow)
    with pytest.raises(BadCheckpoint, match="pirate does not belong to"):
        export_model(tiny_chat, tmp_path / "bundle", adapter=adapter)
    options = [str(tiny_chat), "-o", str(tmp_path / "bundle"), "--adapter", str(adapter)]
    assert main(options) == 2
    assert "It was trained on 'somebody/tiny'" in capsys.readouterr().err
