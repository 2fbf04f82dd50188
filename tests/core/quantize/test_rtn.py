"""Round-to-nearest in blocks: exact where it can be, within half a step elsewhere."""

import pytest
import torch

from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import Quantized, pack, pack_zero_points, quantize

PRECISIONS: list[Int4 | Int8] = [
    Int4(16),
    Int4(32),
    Int4(32, symmetric=True),
    Int8(32),
    Int8(32, symmetric=False),
    Int8(64),
]
# Decibels on Gaussian weights in blocks of 32: 1 dB below what is reached.
SQNR_FLOORS: list[tuple[Int4 | Int8, float]] = [
    (Int4(32), 21.0),
    (Int4(32, symmetric=True), 20.5),
    (Int8(32), 44.4),
    (Int8(32, symmetric=False), 45.4),
]


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 128, generator=generator) * 0.05


def steps(quantized: Quantized, columns: int) -> torch.Tensor:
    """The scale of every weight, [N, columns]."""
    wide = quantized.scales.float().abs()[..., None].expand_as(quantized.levels)
    return wide.flatten(1)[:, :columns]


def sqnr(weight: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(weight.square().sum() / (weight - other).square().sum()))


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_error_is_half_a_step_where_nothing_was_clipped(
    weight: torch.Tensor, precision: Int4 | Int8
) -> None:
    quantized = quantize(weight, precision)
    levels = quantized.levels.flatten(1)
    # A weight on the outermost level may have been beyond it.
    inside = (levels > 0) & (levels < (1 << quantized.bits) - 1)
    assert inside.float().mean() > 0.7
    error = (quantized.dequantize(128) - weight).abs()
    limit = steps(quantized, 128) / 2
    assert (error[inside] <= limit[inside] * (1 + 1e-4)).all()


@pytest.mark.parametrize("precision", [Int8(32), Int8(32, symmetric=False)], ids=describe)
def test_eight_bits_clip_nothing(weight: torch.Tensor, precision: Int8) -> None:
    quantized = quantize(weight, precision)
    error = (quantized.dequantize(128) - weight).abs()
    limit = steps(quantized, 128) / 2
    # The scale is rounded to fp16, which may leave the outermost weight a hair beyond its level,
    # and the level opposite the extreme of a symmetric block is one step short.
    assert (error <= limit * 1.13).float().mean() > 0.98
    assert (error <= limit * 2.2).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_never_worse_than_plain_absmax(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    ours = quantize(weight, precision).dequantize(128)
    blocks = weight.unflatten(1, (-1, precision.group_size))
    if precision.symmetric:
        top = (1 << (7 if isinstance(precision, Int8) else 3)) - 1
        scale = (blocks.abs().amax(-1, keepdim=True) / top).half().float()
        plain = torch.round(blocks / scale) * scale
    else:
        top = 255 if isinstance(precision, Int8) else 15
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        scale = ((high - low) / top).half().float()
        zero = torch.round(-low / scale)
        plain = (torch.clamp(torch.round(blocks / scale) + zero, 0, top) - zero) * scale
    error = (ours - weight).square().unflatten(1, (-1, precision.group_size)).sum(-1)
    plain_error = (plain - blocks).square().sum(-1)
    assert error.sum() <= plain_error.sum() * (1 + 1e-5)
    if not precision.symmetric:  # the plain range is the first that is tried, block by block
        assert (error <= plain_error * (1 + 1e-5)).all()


@pytest.mark.parametrize(("precision", "floor"), SQNR_FLOORS, ids=str)
def test_sqnr(weight: torch.Tensor, precision: Int4 | Int8, floor: float) -> None:
    assert sqnr(weight, quantize(weight, precision).dequantize(128)) >= floor


def test_more_levels_and_smaller_groups_are_closer(weight: torch.Tensor) -> None:
    order: list[Int4 | Int8] = [Int4(128), Int4(32), Int4(16), Int8(64), Int8(16)]
    figures = [sqnr(weight, quantize(weight, p).dequantize(128)) for p in order]
    assert figures == sorted(figures)


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_zero_stays_zero(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    holed = weight * (torch.arange(128) % 3 > 0)
    restored = quantize(holed, precision).dequantize(128)
    assert (restored[:, ::3] == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_zero_points_are_levels(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    quantized = quantize(weight.abs() + 0.01, precision)
    if precision.symmetric:
        assert quantized.zero_points is None
        assert quantized.middle == (8 if quantized.bits == 4 else 128)
    else:
        assert quantized.zero_points is not None
        assert quantized.zero_points.dtype == torch.uint8
        assert (quantized.zero_points == 0).all()  # all weights are positive: zero is the lowest


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_weights_of_one_sign(weight: torch.Tensor, precision: Int4 | Int8, sign: int) -> None:
    one_sided = sign * (weight.abs() + 0.01)
    restored = quantize(one_sided, precision).dequantize(128)
    floor = 15.0 if isinstance(precision, Int4) else 40.0
    assert sqnr(one_sided, restored) > floor


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
@pytest.mark.parametrize("value", [0.0, 1e-8, -1e-7], ids="all-{}".format)
def test_tiny_blocks_stay_finite_and_tiny(precision: Int4 | Int8, value: float) -> None:
    quantized = quantize(torch.full((4, 128), value), precision)
    restored = quantized.dequantize(128)
    assert torch.isfinite(quantized.scales.float()).all()
    assert (quantized.scales != 0).all()
    assert restored.abs().max() <= 2.0**-14 * 8  # steps no smaller than fp16's smallest normal
    if value == 0.0:
        assert (restored == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=describe)
def test_last_block_is_padded(weight: torch.Tensor, precision: Int4 | Int8) -> None:
    columns = 100  # no multiple of any group
    quantized = quantize(weight[:, :columns], precision)
    blocks = -(-columns // precision.group_size)
    assert quantized.levels.shape == (48, blocks, precision.group_size)
    assert quantized.scales.shape == (48, blocks)
    restored = quantized.dequantize(columns)
    assert restored.shape == (48, columns)
    assert sqnr(weight[:, :columns], restored) > (18.0 if quantized.bits == 4 else 40.0)
    padding = quantized.dequantize(blocks * precision.group_size)[:, columns:]
    assert (padding == 0).all()


def test_rows_are_independent_of_how_they_are_sliced() -> None:
    generator = torch.Generator().manual_seed(1)
    tall = torch.randn(5000, 1024, generator=generator)  # 4096 rows a slice
    whole = quantize(tall, Int8(128))
    last = quantize(tall[4090:4100], Int8(128))
    assert torch.equal(whole.levels[4090:4100], last.levels)
    assert torch.equal(whole.scales[4090:4100], last.scales)
    assert whole.levels.shape[0] == 5000


def one_block(*values: float) -> torch.Tensor:
    """A row of one block of 16 that begins with these values."""
    return torch.tensor([[*values, *[0.0] * (16 - len(values))]])


def test_a_parameter_in_training(weight: torch.Tensor) -> None:
    precision = Int4(32, symmetric=True)
    found = quantize(torch.nn.Parameter(weight.clone()), precision)
    assert torch.equal(found.levels, quantize(weight, precision).levels)


def test_symmetric_block_by_hand() -> None:
    # The extreme -4 falls on the lowest level: scale 0.5. Every value is a whole number of steps,
    # so no shrunken range is better.
    quantized = quantize(one_block(-4.0, 1.0, 2.5, -0.5), Int4(16, symmetric=True))
    assert quantized.scales.tolist() == [[0.5]]
    assert quantized.levels[0, 0, :5].tolist() == [0, 10, 13, 7, 8]
    assert quantized.dequantize(4).tolist() == [[-4.0, 1.0, 2.5, -0.5]]


def test_a_positive_extreme_turns_the_scale_negative() -> None:
    quantized = quantize(one_block(4.0, -1.0, 0.0, 3.5), Int4(16, symmetric=True))
    assert quantized.scales.tolist() == [[-0.5]]
    assert quantized.levels[0, 0, :4].tolist() == [0, 10, 8, 1]
    assert quantized.dequantize(4).tolist() == [[4.0, -1.0, 0.0, 3.5]]


def test_asymmetric_block_by_hand() -> None:
    # From -1 to 6.5 in 15 steps of 0.5; zero is level 2.
    quantized = quantize(one_block(-1.0, 6.5, 0.5, 3.0), Int4(16))
    assert quantized.scales.tolist() == [[0.5]]
    assert quantized.zero_points is not None
    assert quantized.zero_points.tolist() == [[2]]
    assert quantized.levels[0, 0, :5].tolist() == [0, 15, 3, 8, 2]
    assert quantized.dequantize(4).tolist() == [[-1.0, 6.5, 0.5, 3.0]]


def of_levels(bits: int, levels: list[int], zeros: list[int] | None = None) -> Quantized:
    """One row in blocks of two."""
    blocks = torch.tensor(levels, dtype=torch.uint8).reshape(1, -1, 2)
    scales = torch.ones(blocks.shape[:2], dtype=torch.float16)
    zero_points = None if zeros is None else torch.tensor([zeros], dtype=torch.uint8)
    return Quantized(bits, 2, blocks, scales, zero_points)


def test_low_nibble_first() -> None:
    assert pack(of_levels(4, [1, 2, 15, 0])).tolist() == [[[0x21], [0x0F]]]


def test_eight_bits_are_bytes() -> None:
    assert pack(of_levels(8, [1, 200, 255, 0])).tolist() == [[[1, 200], [255, 0]]]


@pytest.mark.parametrize(
    ("bits", "zeros", "packed"),
    [
        (4, [1, 2, 15, 4], [[0x21, 0x4F]]),
        (4, [1, 2, 15], [[0x21, 0x0F]]),
        (4, [9], [[0x09]]),
        (8, [1, 2, 200], [[1, 2, 200]]),
    ],
    ids=["even", "odd", "one-block", "eight-bit"],
)
def test_zero_points_packed(bits: int, zeros: list[int], packed: list[list[int]]) -> None:
    result = pack_zero_points(of_levels(bits, [0] * 2 * len(zeros), zeros))
    assert result is not None
    assert result.tolist() == packed


def test_symmetric_has_no_zero_points_to_pack() -> None:
    assert pack_zero_points(of_levels(4, [1, 2])) is None


@pytest.mark.parametrize("used", [10, 11, 12, 13, 14, 15])
def test_rounded_blocks_of_few_levels_are_found_again(used: int) -> None:
    generator = torch.Generator().manual_seed(used)
    scales = (torch.rand(64, 4, 1, generator=generator) * 0.1 + 0.01).half().float()
    levels = torch.randint(0, used + 1, (64, 4, 32), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, used
    zeros = torch.randint(0, used + 1, (64, 4, 1), generator=generator)
    weight = ((levels - zeros) * scales).flatten(1)
    assert torch.equal(quantize(weight, Int4(32)).dequantize(128), weight)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("lowest", "highest"), [(-8, 7), (-8, 3), (-7, 7), (-6, 5), (-5, 5)])
def test_rounded_blocks_without_zero_points_are_found_again(
    lowest: int, highest: int, positive: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = (torch.rand(64, 4, 1, generator=generator) * 0.1 + 0.01).half().float()
    levels = torch.randint(lowest, highest + 1, (64, 4, 32), generator=generator).float()
    levels[..., 0], levels[..., 1] = lowest, highest
    weight = (levels * scales).flatten(1)
    again = quantize(weight, Int4(32, symmetric=True), positive_scales=positive)
    assert torch.equal(again.dequantize(128), weight)
