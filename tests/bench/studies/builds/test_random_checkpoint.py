"""A random checkpoint is stored as published ones are, and transformers and edgelm read it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from bench.studies.builds.random_checkpoint import save_random_checkpoint, tiled
from edgelm.checkpoint.source import open_checkpoint
from tests.checkpoints.models import tiny_config


def test_values_repeat_row_by_row() -> None:
    assert tiled(torch.arange(5), (3, 4)).tolist() == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]
    assert tiled(torch.arange(5), (2,)).tolist() == [0, 1]


@pytest.mark.parametrize("family", ["llama", "lfm2", "qwen3.5", "qwen3-moe"])
def test_every_tensor_is_there_and_has_values(family: str, tmp_path: Path) -> None:
    config = tiny_config(family, dtype="bfloat16")
    count = save_random_checkpoint(config, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec.parameters == count
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, trust_remote_code=False
    )
    report = loaded[1]
    assert not report["missing_keys"] | report["unexpected_keys"] | report["mismatched_keys"]
    layers = {path.name for path in tmp_path.glob("model-layer-*.safetensors")}
    assert len(layers) == len(checkpoint.spec.layers)
    firsts = []
    for name in sorted(layers):
        with safe_open(tmp_path / name, "pt") as file:
            matrices = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
        firsts += [float(one.flatten()[0]) for one in matrices if one.ndim > 1]
    assert len(set(firsts)) > 0.9 * len(firsts), "tensors begin at different values"
