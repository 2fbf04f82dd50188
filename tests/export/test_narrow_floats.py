"""FP8 and NVFP4 against what torch and the format's definition say."""

import pytest
import torch

from edgelm.export.narrow_floats import FP8_LARGEST, to_fp8, to_nvfp4

MATRIX = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


def test_fp8_is_nearest() -> None:
    values, scales = to_fp8(MATRIX)
    back = values.float() * scales[:, None]
    # Three bits of mantissa: at most a sixteenth of the value, and the grid's end at the bottom.
    assert ((back - MATRIX).abs() <= MATRIX.abs() / 16 + scales[:, None] * 2.0**-10).all()


def test_fp8_reaches_its_largest_in_every_row() -> None:
    values, _ = to_fp8(MATRIX)
    assert (values.float().abs().amax(1) >= FP8_LARGEST * 0.93).all()


def test_fp8_of_zeros_is_zero() -> None:
    values, scales = to_fp8(torch.zeros(2, 16))
    assert (values.float() * scales[:, None] == 0).all()


def test_nvfp4_keeps_what_it_can_represent() -> None:
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    exact = torch.cat([grid, -grid]).repeat(4, 2) * 0.25
    assert torch.allclose(to_nvfp4(exact).dequantize(), exact, atol=1e-6)


def test_nvfp4_is_nearest_among_its_levels() -> None:
    blocks = to_nvfp4(MATRIX)
    steps = (blocks.scales.float() * blocks.scale).repeat_interleave(16, 1)
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    levels = torch.cat([grid, -grid])
    every = (steps[..., None] * levels - MATRIX[..., None]).abs().amin(-1)
    assert torch.allclose((blocks.dequantize() - MATRIX).abs(), every, atol=1e-6)


@pytest.mark.parametrize("matrix", [torch.zeros(2, 32), torch.full((2, 32), 1e-30)])
def test_nvfp4_of_next_to_nothing_is_finite(matrix: torch.Tensor) -> None:
    back = to_nvfp4(matrix).dequantize()
    assert back.isfinite().all()
    assert back.abs().max() < 1e-6


def test_nvfp4_outliers_keep_to_their_block() -> None:
    spiked = MATRIX.clone()
    spiked[0, 0] = 40.0
    error = (to_nvfp4(spiked).dequantize() - spiked).abs()
    assert error[0, 16:].max() < 0.5
