"""FP8 and NVFP4 against what torch and the format's definition say."""

import pytest
import torch

from edgelm.export.quantize.float_formats import FP8_MAX, to_fp8, to_nvfp4
from edgelm.quantize.gptq import Compensation

MATRIX = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


def test_fp8_is_nearest() -> None:
    values, scales = to_fp8(MATRIX)
    back = values.float() * scales[:, None]
    # Three bits of mantissa: at most a sixteenth of the value, and the grid's end at the bottom.
    assert ((back - MATRIX).abs() <= MATRIX.abs() / 16 + scales[:, None] * 2.0**-10).all()


def test_fp8_reaches_its_largest_in_every_row() -> None:
    values, _ = to_fp8(MATRIX)
    assert (values.float().abs().amax(1) >= FP8_MAX * 0.93).all()


def test_fp8_of_zeros_is_zero() -> None:
    values, scales = to_fp8(torch.zeros(2, 16))
    assert (values.float() * scales[:, None] == 0).all()


def test_nvfp4_keeps_what_it_can_represent() -> None:
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    exact = torch.cat([grid, -grid]).repeat(4, 2) * 0.25
    # The matrix's scale is held in fp16.
    assert torch.allclose(to_nvfp4(exact).dequantize(), exact, rtol=2.0**-11)


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


def moments(columns: int) -> torch.Tensor:
    """Of correlated inputs, some of them much stronger than others."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1, columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return inputs.T @ inputs / len(inputs)


def output_error(rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    error = rounded - MATRIX
    return float(((error @ hessian) * error).sum())


def test_nvfp4_scales_leave_less_error_than_the_largest_weights() -> None:
    error = (to_nvfp4(MATRIX).dequantize() - MATRIX).square().sum()
    blocks = MATRIX.unflatten(1, (-1, 16))
    scale = MATRIX.abs().max() / 6 / 448
    steps = (blocks.abs().amax(-1) / 6 / scale).to(torch.float8_e4m3fn).float() * scale
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    levels = torch.cat([levels, -levels]) * steps[..., None, None]
    plain = (levels - blocks[..., None]).abs().amin(-1).square().sum()
    assert error < 0.85 * plain


def test_nvfp4_scales_go_by_what_channels_are_worth() -> None:
    worth = torch.ones(64)
    worth[::16] = 1000.0

    def error(importance: torch.Tensor | None) -> float:
        rounded = to_nvfp4(MATRIX, importance).dequantize()
        return float(((rounded - MATRIX).square() * worth).sum())

    assert error(worth) < 0.5 * error(None)


def test_compensation_leaves_less_error_in_the_outputs() -> None:
    hessian = moments(64)
    compensation = Compensation(hessian)
    nearest = output_error(to_nvfp4(MATRIX).dequantize(), hessian)
    made_up = output_error(to_nvfp4(MATRIX, compensation=compensation).dequantize(), hessian)
    assert made_up < 0.6 * nearest
    (plain, scales), (values, same) = to_fp8(MATRIX), to_fp8(MATRIX, compensation)
    assert torch.equal(scales, same)
    nearest = output_error(plain.float() * scales[:, None], hessian)
    assert output_error(values.float() * scales[:, None], hessian) < 0.6 * nearest


def test_a_matrix_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compensation = Compensation(moments(64))
    whole = to_nvfp4(MATRIX, compensation=compensation)
    eight = to_fp8(MATRIX, compensation)[0]
    monkeypatch.setattr("edgelm.quantize.gptq._ELEMENTS", 7 * 64)
    monkeypatch.setattr("edgelm.export.quantize.float_formats._CACHED", 3 * 64)
    parts = to_nvfp4(MATRIX, compensation=compensation)
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scales.float(), whole.scales.float())
    assert torch.equal(to_fp8(MATRIX, compensation)[0].float(), eight.float())
