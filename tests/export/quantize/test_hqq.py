"""HQQ: a grid for most weights of a block, not for its outliers."""

import pytest
import torch

from edgelm.export.quantize.hqq import hqq
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import Quantized, grid

PRECISIONS: list[Int4 | Int8] = [Int4(32), Int4(32, symmetric=True), Int4(128), Int8(32)]
COLUMNS = 200


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # Student's t with three degrees of freedom: heavy tails.
    normal = torch.randn(48, COLUMNS, generator=generator)
    spread = torch.randn(3, 48, COLUMNS, generator=generator).square().mean(0).sqrt()
    return normal / spread * 0.05


def full_range(weight: torch.Tensor, precision: Int4 | Int8) -> Quantized:
    """Nearest levels of the whole range of every block."""
    bits = 4 if isinstance(precision, Int4) else 8
    padding = (0, -weight.shape[1] % precision.group_size)
    blocks = torch.nn.functional.pad(weight, padding).unflatten(1, (-1, precision.group_size))
    scales, zeros = grid(blocks, bits, precision.symmetric)
    levels = torch.round(blocks / scales[..., None] + zeros[..., None]).clamp(0, (1 << bits) - 1)
    stored = None if precision.symmetric else zeros.to(torch.uint8)
    return Quantized(bits, precision.group_size, levels.to(torch.uint8), scales.half(), stored)


def robust_error(weight: torch.Tensor, quantized: Quantized) -> float:
    return float((quantized.dequantize(COLUMNS) - weight).abs().pow(0.7).sum())


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_lowers_the_error_that_it_is_about(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    before = robust_error(weight, full_range(weight, precision))
    assert robust_error(weight, hqq(weight, precision)) < 0.99 * before


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_result_is_what_kernels_read(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    quantized = hqq(weight, precision)
    blocks = -(-COLUMNS // precision.group_size)
    assert quantized.levels.shape == (48, blocks, precision.group_size)
    assert int(quantized.levels.max()) <= (1 << quantized.bits) - 1
    assert quantized.scales.dtype == torch.float16
    assert (quantized.zero_points is None) == precision.symmetric
    if quantized.zero_points is not None:
        assert quantized.zero_points.dtype == torch.uint8
        assert int(quantized.zero_points.max()) <= (1 << quantized.bits) - 1
    padding = quantized.dequantize(blocks * precision.group_size)[:, COLUMNS:]
    assert (padding == 0).all()


@pytest.mark.parametrize("value", [0.0, 1e-8, -3.0], ids="all-{}".format)
def test_constant_blocks(value: float) -> None:
    restored = hqq(torch.full((4, 64), value), Int4(32)).dequantize(64)
    torch.testing.assert_close(restored, torch.full((4, 64), value), rtol=1e-3, atol=2.0**-14 * 8)


def test_bf16_weights_and_determinism(weight: torch.Tensor) -> None:
    stored = weight.bfloat16()
    assert torch.equal(hqq(stored, Int4(32)).levels, hqq(stored.float(), Int4(32)).levels)


def test_rows_are_independent_of_how_they_are_sliced(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hqq(weight, Int4(32))
    monkeypatch.setattr("edgelm.export.quantize.hqq._ELEMENTS", COLUMNS * 7)
    assert torch.equal(hqq(weight, Int4(32)).levels, whole.levels)
