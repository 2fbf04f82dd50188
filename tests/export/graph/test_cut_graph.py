"""A graph that is cut for a draft head computes what the whole graph does."""

from pathlib import Path

import numpy as np
import pytest

from edgelm.bundle import read_manifest
from edgelm.export.pipeline import export_model
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import never
from tests.checkpoints.draft_heads import save_with_draft_head

TOKENS = np.random.default_rng(0).integers(4, 320, 40)


def engine(folder: Path) -> OrtEngine:
    graph = read_manifest(folder).graph
    return OrtEngine(folder, graph, capacity=64, prefill_chunk=64, threads=1)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_both_give_the_same_logits(tmp_path: Path, precision: str, tied: bool) -> None:
    """Bit for bit in runs of one token; a prompt's last layer computes more rows."""
    source = save_with_draft_head(tmp_path / "source", context=64, tie_word_embeddings=tied)
    engines = []
    for name, head in (("whole", False), ("cut", True)):
        export_model(
            source, tmp_path / name, precision=precision, method="rtn", gate="none", draft_head=head
        )
        engines.append(engine(tmp_path / name))
    manifests = [read_manifest(tmp_path / name) for name in ("whole", "cut")]
    assert [len(one.graph.segments) for one in manifests] == [0, 3]
    assert manifests[0].weight_bytes == manifests[1].weight_bytes
    prompt = [one.run(TOKENS[:30], 0, logits=1, cancelled=never).copy() for one in engines]
    np.testing.assert_allclose(
        prompt[0], prompt[1], rtol=0, atol=1e-4 * float(np.abs(prompt[0]).max())
    )
    for at in range(30, 40):
        rows = [one.run(TOKENS[at : at + 1], at, logits=1, cancelled=never) for one in engines]
        assert (rows[0] == rows[1]).all()
    for one in engines:
        one.close()
