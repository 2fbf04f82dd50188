"""Groups whose inputs have outliers are not rounded to int8."""

from pathlib import Path

import pytest
import torch

from edgelm.export.pipeline import export_model
from edgelm.export.quantize import smooth_quant
from edgelm.export.quantize.input_stats import InputStats, input_name
from edgelm.export.quantize.smooth_quant import outlier_groups
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import W8A8, Int8
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.conftest import TinyFactory


def test_outliers_by_hand(calm: TinyFactory) -> None:
    checkpoint = calm("llama").checkpoint
    plain = Weights(checkpoint)
    names = {group: input_name(plain, group) for group in plain.groups()}
    ones = {name: torch.ones(plain.columns(group)) for group, name in names.items()}
    # A peak of 43.9 times the root mean square: steps of 0.346, whose noise is 0.00998.
    peaks = {name: torch.full_like(one, 43.9) for name, one in ones.items()}
    stats = InputStats(plain, mean_square=ones, absmax=peaks)
    assignment = dict.fromkeys(plain.groups(), W8A8())
    assert outlier_groups(stats, assignment, exclude=lambda group: False) == []

    down = "layers.1.mlp.down"
    peaks[names[down]][3] = 44.1
    peaks[names["layers.0.mlp.down"]][0] = 1000
    both = ["layers.0.mlp.down", down]
    assert outlier_groups(stats, assignment, exclude=lambda group: False) == both
    assert outlier_groups(stats, assignment, exclude=lambda group: group == down) == both[:1]
    assert outlier_groups(stats, assignment | {down: Int8(0)}, exclude=lambda _: False) == both[:1]


def test_groups_with_outliers_are_int8_with_a_scale_a_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_tiny_chat(tmp_path / "source", context=512)
    monkeypatch.setattr(smooth_quant, "_MAX_NOISE", 0.0)
    lines: list[str] = []
    manifest = export_model(
        source,
        tmp_path / "b",
        target="jetson-agx-orin-64gb",
        precision="w8a8",
        exceptions={"*.qkv": "w8a8", "*.o": "fp16"},
        context=64,
        gate="off",
        progress=lines.append,
    )
    found = manifest.precision
    assert found["layers.0.mlp.down"] == found["layers.1.mlp.gate_up"] == Int8(group_size=0)
    assert found["layers.0.attention.qkv"] == W8A8(), "named for it"
    assert any(
        "outliers too large for int8: the inputs of layers.0.mlp.gate_up, " in line
        for line in lines
    )
