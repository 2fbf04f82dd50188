"""GPTQ: less error where inputs are correlated, on the same grid that kernels read."""

import pytest
import torch

from edgelm.quantize.gptq import _inverse_factor, compensate, gptq
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import Quantized, quantize

PRECISIONS: list[Int4 | Int8] = [
    Int4(16),
    Int4(32),
    Int4(32, symmetric=True),
    Int4(128),
    Int8(32),
    Int8(32, symmetric=False),
]
COLUMNS = 200  # no multiple of 128, nor of 32 or 16


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int) -> torch.Tensor:
    """Second moments of channels that share a few causes, of different strength."""
    causes = random(columns, 8, seed=1) @ random(8, 400, seed=2)
    inputs = (causes + random(columns, 400, seed=3)) * random(columns, 1, seed=4).exp()
    return inputs @ inputs.T / 400


def error(weight: torch.Tensor, quantized: Quantized, hessian: torch.Tensor) -> float:
    difference = quantized.dequantize(weight.shape[1]) - weight
    return float(((difference @ hessian) * difference).sum())


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return random(48, COLUMNS, seed=0) * 0.05


@pytest.fixture(scope="module")
def hessian() -> torch.Tensor:
    return correlated(COLUMNS)


def test_the_factor_s_square_is_the_inverse_in_the_order_of_rounding() -> None:
    """At a size that is inverted by halves."""
    hessian = correlated(1100)
    order = torch.argsort(hessian.diagonal(), descending=True)
    factor = _inverse_factor(hessian, order)
    assert not factor.tril(-1).any()
    damped = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(1100))[order][:, order]
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(1100), atol=2e-3, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_halves_the_error_of_nearest_levels(
    weight: torch.Tensor, hessian: torch.Tensor, precision: Int4 | Int8
) -> None:
    nearest = error(weight, quantize(weight, precision, hessian.diagonal()), hessian)
    assert error(weight, gptq(weight, precision, hessian), hessian) < 0.5 * nearest


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_result_is_what_kernels_read(
    weight: torch.Tensor, hessian: torch.Tensor, precision: Int4 | Int8
) -> None:
    quantized = gptq(weight, precision, hessian)
    blocks = -(-COLUMNS // precision.group_size)
    assert quantized.levels.shape == (48, blocks, precision.group_size)
    assert quantized.levels.dtype == torch.uint8
    assert int(quantized.levels.max()) <= (1 << quantized.bits) - 1
    assert quantized.scales.dtype == torch.float16
    assert quantized.scales.shape == (48, blocks)
    if precision.symmetric:
        assert quantized.zero_points is None
    else:
        assert quantized.zero_points is not None
        assert quantized.zero_points.dtype == torch.uint8
        assert int(quantized.zero_points.max()) <= (1 << quantized.bits) - 1
    padding = quantized.dequantize(blocks * precision.group_size)[:, COLUMNS:]
    assert (padding == 0).all()


def test_independent_inputs_leave_nothing_to_make_up_for(weight: torch.Tensor) -> None:
    energy = random(COLUMNS, seed=5).square() + 0.1
    moments = torch.diag(energy)
    damped = energy + 0.01 * energy.mean()
    ours, nearest = gptq(weight, Int4(32), moments), quantize(weight, Int4(32), damped)
    torch.testing.assert_close(ours.dequantize(COLUMNS), nearest.dequantize(COLUMNS))


def test_scale_of_the_moments_does_not_matter(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    # A power of two, so that rounding is the same.
    once, twice = gptq(weight, Int4(32), hessian), gptq(weight, Int4(32), hessian * 1024)
    assert torch.equal(once.levels, twice.levels)


def test_same_input_same_result(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    before = weight.clone(), hessian.clone()
    first, second = (gptq(weight, Int4(32), hessian) for _ in range(2))
    assert torch.equal(first.levels, second.levels)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_rows_are_independent_of_how_they_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = random(64, 96, seed=6), correlated(96)
    whole = gptq(weight, Int4(32), moments)
    monkeypatch.setattr("edgelm.quantize.gptq._ELEMENTS", 96 * 10)
    sliced = gptq(weight, Int4(32), moments)
    # A matrix product may round differently with other shapes, which can tip a level.
    assert (whole.levels == sliced.levels).float().mean() > 0.99
    assert torch.equal(whole.scales, sliced.scales)


def test_bf16_weights(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    stored = weight.bfloat16()
    assert torch.equal(
        gptq(stored, Int4(32), hessian).levels, gptq(stored.float(), Int4(32), hessian).levels
    )


def test_dead_channels_are_still_rounded_sensibly(
    weight: torch.Tensor, hessian: torch.Tensor
) -> None:
    alive = torch.ones(COLUMNS)
    alive[::5] = 0
    dead = hessian * alive * alive[:, None]
    difference = gptq(weight, Int4(32), dead).dequantize(COLUMNS) - weight
    assert torch.isfinite(difference).all()
    assert float(difference[:, ::5].abs().max()) < float(weight.abs().max())


@pytest.mark.parametrize(
    "moments",
    [torch.zeros(64, 64), torch.ones(64, 64), torch.diag(torch.eye(64)[0]) * 1e6],
    ids=["zero", "rank-one", "one-channel"],
)
def test_degenerate_moments(moments: torch.Tensor) -> None:
    weight = random(16, 64, seed=7)
    restored = gptq(weight, Int4(16), moments).dequantize(64)
    assert torch.isfinite(restored).all()
    # The sum of a row is all that matters where inputs are always equal.
    if float(moments.min()) == 1:
        nearest = quantize(weight, Int4(16)).dequantize(64)
        left = (restored - weight).sum(1).square().mean()
        assert left < 0.1 * (nearest - weight).sum(1).square().mean()


@pytest.mark.parametrize("positive", [False, True])
def test_compensated_weights_are_those_that_were_rounded(
    weight: torch.Tensor, hessian: torch.Tensor, positive: bool
) -> None:
    precision = Int4(32, symmetric=True)
    expected = gptq(weight, precision, hessian, positive_scales=positive)
    compensated, quantized = compensate(weight, precision, hessian, positive_scales=positive)
    assert torch.equal(quantized.levels, expected.levels)
    assert torch.equal(quantized.scales, expected.scales)
    assert not torch.equal(compensated, weight)
    blocks = torch.nn.functional.pad(compensated, (0, -COLUMNS % 32)).unflatten(1, (-1, 32))
    nearest = torch.round(blocks / quantized.scales.float()[..., None]).add_(8).clamp_(0, 15)
    assert torch.equal(nearest.to(torch.uint8), quantized.levels)
