"""Unpack levels of less than a byte from the integers that hold several of them."""

import torch


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Four-bit values, uint8 [..., n * 2 per byte]: of any integer type, lowest bits first."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack([octets & 0xF, octets >> 4], -1).flatten(-2)


def along_rows(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 [rows, count] from int32 [rows, words], a stream of bits along each row.

    With 2, 4 and 8 bits a word holds whole values; three-bit values cross from word to word.
    """
    if bits == 8:
        return packed.contiguous().view(torch.uint8)[:, :count]
    if bits == 4:
        return nibbles(packed)[:, :count]
    octets = packed.contiguous().view(torch.uint8)
    ones = (octets[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    each = ones.flatten(-2)[:, : count * bits].unflatten(1, (count, bits))
    values: torch.Tensor = (each << torch.arange(bits, dtype=torch.uint8)).sum(
        -1, dtype=torch.uint8
    )
    return values


def words(count: int, bits: int) -> int:
    """32-bit words that hold `count` values."""
    return -(-count * bits // 32)
