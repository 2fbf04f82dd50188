"""Weights in E2M1: NVFP4 and MXFP4 (OCP Microscaling Formats 1.0).

Two codes in a byte, the even column in the low half. NVFP4 has an E4M3 scale for every 16 columns
and an fp32 scale for the matrix; MXFP4 an E8M0 scale, a power of two, for every 32.
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.quantize.precision import NVFP4_BLOCK, Int8, Nvfp4

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Matrix

MXFP4_BLOCK = 32
_E8M0_BIAS = 127


def nvfp4_matrix(
    parts: Parts, title: str, codes: str, scale: str, *, divides: bool
) -> PackedMatrix:
    """A matrix in NVFP4.

    Args:
        parts: with `weight_scale`.
        title: of the format.
        codes: the part with codes, uint8 [N, K/2].
        scale: the part with the scale of the matrix.
        divides: whether block scales are divided by that, not multiplied.
    """
    rows, half = parts.matrix(codes, ("U8",))
    columns = 2 * half
    if columns % NVFP4_BLOCK:
        raise parts.wrong(codes, f"has {columns} inputs, expected a multiple of {NVFP4_BLOCK}")
    parts.expect("weight_scale", ("F8_E4M3",), (rows, columns // NVFP4_BLOCK))
    if any(size != 1 for size in parts.expect(scale, FLOATS)):
        raise parts.wrong(scale, "has several values, expected one for the matrix")

    def read() -> "Matrix":
        from edgelm.checkpoint.quantized.unpack import nibbles
        from edgelm.quantize.grids import Nvfp4Blocks

        whole = parts.floats(scale).reshape(())
        if not float(whole) > 0:
            raise parts.wrong(scale, f"is {float(whole):g}, expected a number above zero")
        parts.floats("weight_scale")  # checks that they are finite
        return Nvfp4Blocks(
            nibbles(parts.tensor(codes)),
            parts.tensor("weight_scale"),
            1 / whole if divides else whole,
        )

    return PackedMatrix((rows, columns), f"{title}, NVFP4", parts.paths, read, Nvfp4)


def mxfp4_matrix(parts: Parts, title: str, codes: str, scales: str) -> PackedMatrix:
    """A matrix in MXFP4: codes uint8 [N, K/2], scales uint8 [N, K/32].

    As integers of eight bits, which hold its numbers exactly.
    """
    rows, half = parts.matrix(codes, ("U8",))
    columns = 2 * half
    parts.expect(scales, ("U8", "F8_E8M0"), (rows, columns // MXFP4_BLOCK))

    def read() -> "Matrix":
        import torch

        from edgelm.checkpoint.quantized.unpack import nibbles
        from edgelm.quantize.grids import integers_of_e2m1

        exponents = parts.tensor(scales).view(torch.uint8)
        return integers_of_e2m1(nibbles(parts.tensor(codes)), powers_of_two(exponents), MXFP4_BLOCK)

    return PackedMatrix(
        (rows, columns), f"{title}, MXFP4", parts.paths, read, lambda: Int8(MXFP4_BLOCK)
    )


def powers_of_two(exponents: "torch.Tensor") -> "torch.Tensor":
    """E8M0 scales, uint8, in fp32."""
    import torch

    return torch.ldexp(torch.ones(exponents.shape), exponents.int() - _E8M0_BIAS)


def mxfp4_values(blocks: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Dequantize tensors of any shape, as gpt-oss stores its experts.

    Args:
        blocks: uint8 [..., groups, 16], two codes each.
        scales: uint8 [..., groups].

    Returns:
        fp32 [..., groups * 32].
    """
    from edgelm.checkpoint.quantized.unpack import nibbles
    from edgelm.quantize.grids import E2M1

    codes = nibbles(blocks).int()
    signed = E2M1[codes & 7].where(codes < 8, -E2M1[codes & 7])
    return (signed * powers_of_two(scales)[..., None]).flatten(-2)
