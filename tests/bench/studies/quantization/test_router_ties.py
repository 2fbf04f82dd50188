"""The error of a mixture is split into that of its weights and that of other experts."""

from pathlib import Path

import torch

from bench.studies.quantization.router_ties import measure
from edgelm.checkpoint.source import open_checkpoint
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model

TOKENS = torch.randint(3, 128, (8, 48), generator=torch.Generator().manual_seed(1))


def test_kept_weights_are_exact_and_the_rest_is_ties(tmp_path: Path) -> None:
    model = tiny_model("gpt-oss", swiglu_limit=7.0)
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", "MXFP4"))
    found = measure(checkpoint, TOKENS)
    assert found.exact.kl < 1e-7
    assert found.exact.top1 == 1
    assert 0.02 < found.changed < 0.5
    assert 0 < found.tie < found.margin / 3
    assert found.steered.kl < found.exported.kl / 3
    assert found.steered.top1 > found.exported.top1
