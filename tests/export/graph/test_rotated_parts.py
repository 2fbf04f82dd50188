"""Any part of a head may be rotated: the graph is the model, or the plan refuses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.devices.kernels import check_shape
from edgelm.errors import BadInput
from edgelm.spec.families.table import FAMILIES
from tests.checkpoints.models import TINY, save_tiny, tiny_config
from tests.export.graphs import DialectName, build_session

LENGTH = 24
HEAD_DIM = 32
PARTIAL = sorted(name for name, (kind, _) in TINY.items() if FAMILIES[kind].partial_rotation)
ROTATED = (4, 8, 12, 20, 24)  # channels of a head


def with_part(family: str, rotated: int) -> dict[str, Any]:
    """The fields of a model with heads of 32 channels, of which a part is rotated."""
    rope = getattr(tiny_config(family), "rope_parameters", None) or {}
    part = rotated / HEAD_DIM
    return {
        "head_dim": HEAD_DIM,
        "hidden_size": 4 * HEAD_DIM,
        "num_attention_heads": 4,
        "rope_parameters": {**rope, "partial_rotary_factor": part},
        "partial_rotary_factor": part,
    }


def logits(checkpoint: Checkpoint, folder: Path, dialect: DialectName) -> np.ndarray:
    """Of 24 tokens, the last of which are decoded one by one."""
    tokens = np.random.default_rng(0).integers(3, 128, LENGTH)
    with build_session(checkpoint, folder, dialect=dialect) as session:
        first = session.advance(tokens[:16], logits=16).copy()
        rest = [session.advance(tokens[at : at + 1])[0].copy() for at in range(16, LENGTH)]
    return np.concatenate([first, np.stack(rest)])


@pytest.mark.parametrize("rotated", ROTATED)
@pytest.mark.parametrize("family", PARTIAL)
def test_a_part_of_each_head_is_rotated(tmp_path: Path, family: str, rotated: int) -> None:
    model = save_tiny(family, tmp_path / "source", **with_part(family, rotated))
    checkpoint = open_checkpoint(tmp_path / "source")
    rope = next(layer.rope for layer in checkpoint.spec.layers if layer.rope)
    assert rope.dim == rotated
    tokens = np.random.default_rng(0).integers(3, 128, LENGTH)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    dialects: list[DialectName] = [] if checkpoint.spec.mixtures else ["standard", "decomposed"]
    if 2 * checkpoint.spec.rotary_width(rope) % 16:
        with pytest.raises(BadInput, match=f"{rotated} rotated of 32 channels"):
            check_shape(checkpoint.spec, "onnxruntime")
    else:
        check_shape(checkpoint.spec, "onnxruntime")
        dialects.append("ort")
    for dialect in dialects:
        ours = logits(checkpoint, tmp_path / dialect, dialect)
        assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max(), dialect
