"""Importance: errors land in the channels that matter least."""

import pytest
import torch

from edgelm.export.quantize.input_stats import InputStats
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4
from edgelm.quantize.rtn import quantize
from tests.conftest import TinyFactory


@pytest.mark.parametrize("symmetric", [False, True], ids=["zero-points", "symmetric"])
def test_weighted_error_is_below_the_unweighted_choice(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    importance = torch.rand(128, generator=generator).pow(6) + 1e-4
    precision = Int4(group_size=32, symmetric=symmetric)

    def error(quantized: torch.Tensor) -> float:
        return float(((quantized - weight).square() * importance).sum())

    aware = error(quantize(weight, precision, importance).dequantize(128))
    blind = error(quantize(weight, precision).dequantize(128))
    assert aware < 0.95 * blind


def test_equal_importance_changes_nothing() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    plain = quantize(weight, Int4()).dequantize(64)
    assert torch.equal(quantize(weight, Int4(), torch.full((64,), 3.0)).dequantize(64), plain)


def test_dead_channels_are_still_rounded_sensibly() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    restored = quantize(weight, Int4(), torch.zeros(64)).dequantize(64)
    assert float((restored - weight).abs().max()) < 0.5


def test_group_takes_the_mean_square_of_its_first_tensor(calm: TinyFactory) -> None:
    checkpoint = calm("llama").checkpoint
    mean_square = {"model.layers.0.self_attn.q_proj.weight": torch.arange(64.0)}
    stats = InputStats(Weights(checkpoint), mean_square, absmax={})
    importance = stats.importance("layers.0.attention.qkv")
    assert importance is not None
    assert torch.equal(importance, torch.arange(64.0))
    assert Quantizer(Weights(checkpoint)).importance("layers.0.attention.qkv") is None
