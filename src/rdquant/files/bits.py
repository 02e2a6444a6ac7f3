"""Packing small unsigned integers at any width of 1 to 16 bits: how model files store weights.

The integers follow each other without gaps, each from its lowest bit, bytes from their lowest bit; the
last byte is filled up with zeros.
"""

from __future__ import annotations

import numpy as np

from ..errors import BadModel, UsageError


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` integers of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Flat integers in ``0 .. 2^bits - 1`` -> uint8. Raises `UsageError` for one outside."""
    if not 1 <= bits <= 16:
        raise UsageError(f"bits must be 1..16, got {bits}")
    v = np.asarray(values).reshape(-1)
    if v.size and not 0 <= int(v.min()) <= int(v.max()) < 2**bits:
        raise UsageError(f"{int(v.min())}..{int(v.max())} do not fit {bits} unsigned bits")
    planes = (v.astype(np.uint16)[:, None] >> np.arange(bits, dtype=np.uint16)) & 1
    return np.packbits(planes.astype(np.uint8), bitorder="little")


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse: uint8 -> ``(count,)`` uint16. Raises `BadModel` for a wrong length or dirty padding."""
    if not 1 <= bits <= 16:
        raise BadModel(f"packed integers have 1..16 bits, got {bits}")
    if data.dtype != np.uint8 or data.ndim != 1 or len(data) != packed_size(count, bits):
        raise BadModel(
            f"{count} packed integers of {bits} bits take {packed_size(count, bits)} bytes, got {data.size}"
        )
    planes = np.unpackbits(data, bitorder="little")
    if planes[count * bits :].any():
        raise BadModel("packed integers end in bits that are not zero")
    weights = np.left_shift(1, np.arange(bits)).astype(np.uint16)
    return (planes[: count * bits].reshape(count, bits) * weights).sum(1, dtype=np.uint16)
