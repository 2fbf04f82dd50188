"""GPTQ: round column by column, and let the columns still to come make up for each error.

Frantar et al., arXiv 2210.17323. A matrix's error on text is tr(D H Dᵀ), where D is the error of
its weights and H = XᵀX / n the second moments of its inputs. Once a column is rounded, the rest of
its row can move to where that error does least harm: along a row of the Cholesky factor of H⁻¹.

Columns are taken from the strongest to the weakest while groups stay what they are in memory, with
scales fixed beforehand (the paper's "static groups"). The scales come from the search of
`edgelm.quantize.rtn`, weighted by 1 / diag(H⁻¹): what an error costs once the other columns have
made up for it. On SmolLM2 these two choices take a fifth off the error that is left.
"""

from collections.abc import Callable, Iterator

import torch

from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import Quantized, quantize

# Of a column's number and its weights [N]: the nearest values [N] that can be stored.
Nearest = Callable[[int, torch.Tensor], torch.Tensor]

_DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_COLUMNS = 128  # columns rounded before the rest of the matrix hears of it
_ELEMENTS = 1 << 23  # of the matrix worked on at a time
_SMALL = 512  # rows of a triangular matrix that LAPACK inverts as fast as halves would be


def gptq(
    weight: torch.Tensor,
    precision: Int4 | Int8,
    hessian: torch.Tensor,
    *,
    positive_scales: bool = False,
) -> Quantized:
    """Quantize [N, K] with the second moments [K, K] of its input channels.

    The scale of the moments does not matter. Memory beside the result is a few times [K, K].
    """
    grid, parts = _compensated(weight, precision, hessian, positive_scales)
    levels = torch.cat([levels for levels, _ in parts])
    return Quantized(grid.bits, grid.group_size, levels, grid.scales, grid.zero_points)


def compensate(
    weight: torch.Tensor,
    precision: Int4 | Int8,
    hessian: torch.Tensor,
    *,
    positive_scales: bool = False,
) -> tuple[torch.Tensor, Quantized]:
    """The weights that `gptq` rounds, fp32 [N, K], and what it rounds them to.

    Training through the quantizer starts from them: rounded to nearest they give GPTQ's levels,
    and a weight that was a close call stays one.
    """
    grid, parts = _compensated(weight, precision, hessian, positive_scales)
    levels, weights = (torch.cat(one) for one in zip(*parts, strict=True))
    return weights, Quantized(grid.bits, grid.group_size, levels, grid.scales, grid.zero_points)


class Compensation:
    """What columns of a matrix do for each other, by the second moments [K, K] of its inputs."""

    def __init__(self, hessian: torch.Tensor) -> None:
        self._order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        self._factor = _inverse_factor(hessian, self._order)
        # What a squared error of each column [K] costs once the others have made up for it:
        # diag(H⁻¹) = squared norms of the factor's columns.
        self.importance = torch.empty(len(self._order))
        self.importance[self._order] = 1 / self._factor.square().sum(0)

    def __call__(self, weight: torch.Tensor, nearest: Nearest) -> torch.Tensor:
        """Each weight [N, K] as it is just before its turn, fp32.

        By then it has made up for the errors of those rounded earlier. Memory is a few times
        the matrix: give a large one by `row_slices`.
        """
        columns, factor = self._order.tolist(), self._factor
        # Transposed, so that a column of the matrix is contiguous. [K, N], in order of rounding.
        left = weight.float().T[self._order]
        for start in range(0, len(left), _COLUMNS):
            stop = min(start + _COLUMNS, len(left))
            errors = torch.empty_like(left[start:stop])
            for at in range(start, stop):
                error = (left[at] - nearest(columns[at], left[at])) / factor[at, at]
                errors[at - start] = error
                left[at + 1 : stop].addr_(factor[at, at + 1 : stop], error, alpha=-1)
            left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        result = torch.empty_like(weight, dtype=torch.float32)
        result[:, self._order] = left.T
        return result


def row_slices(shape: torch.Size) -> Iterator[slice]:
    """Rows of a matrix, so many at a time that working on them takes little memory."""
    rows = max(1, _ELEMENTS // shape[1])
    return (slice(at, at + rows) for at in range(0, shape[0], rows))


def _compensated(
    weight: torch.Tensor, precision: Int4 | Int8, hessian: torch.Tensor, positive_scales: bool
) -> tuple[Quantized, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """The grid of all rows, and slice by slice their levels and the weights rounded to them."""
    compensation = Compensation(hessian)
    grid = quantize(weight, precision, compensation.importance, positive_scales=positive_scales)
    return grid, (
        _round(weight[rows], _slice(grid, rows), compensation) for rows in row_slices(weight.shape)
    )


def _inverse_factor(hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The upper triangular [K, K] U with UᵀU = H⁻¹, for H damped and in the order of rounding."""
    # Backwards: from the lower factor of H reversed, U is one triangular inverse away, and
    # H⁻¹ is never formed, whose own factorization would fail first.
    backwards = order.flip(0)
    damped = hessian[backwards][:, backwards].float()
    diagonal = damped.diagonal()
    # A channel that never fired counts as a weak one. Without any moments all count the same.
    diagonal.add_(_DAMPING * float(diagonal.mean()) or 1.0)
    lower: torch.Tensor = torch.linalg.cholesky(damped)
    _invert(lower)
    return lower.flip(0, 1)


def _invert(lower: torch.Tensor) -> None:
    """Invert a lower triangular matrix in place.

    By halves, so that nearly all is matrix products: a third less arithmetic than solving for the
    identity, in half the time.
    """
    size = len(lower)
    if size <= _SMALL:
        identity = torch.eye(size)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, below, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert(first)
    _invert(second)
    below.copy_(second @ (below @ first)).neg_()


def _slice(grid: Quantized, rows: slice) -> Quantized:
    zeros = grid.zero_points
    return Quantized(
        grid.bits,
        grid.group_size,
        grid.levels[rows],
        grid.scales[rows],
        None if zeros is None else zeros[rows],
    )


def _round(
    weight: torch.Tensor, grid: Quantized, compensation: Compensation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels uint8 [N, blocks, group_size] of rows on a grid whose scales are given.

    Beside them the weights fp32 [N, K] that were rounded to them.
    """
    scales = grid.scales.float().T.contiguous()
    zeros = torch.full_like(scales, grid.middle)
    if grid.zero_points is not None:
        zeros = grid.zero_points.float().T.contiguous()
    top = (1 << grid.bits) - 1
    # Levels are kept as columns are rounded: what pads the last block keeps its own, zero.
    levels = grid.levels.flatten(1).T.contiguous()

    def nearest(column: int, values: torch.Tensor) -> torch.Tensor:
        block = column // grid.group_size
        level = torch.round(values / scales[block]).add_(zeros[block]).clamp_(0, top)
        levels[column] = level
        return (level - zeros[block]) * scales[block]

    rounded = compensation(weight, nearest)
    return levels.T.unflatten(1, (-1, grid.group_size)).contiguous(), rounded
