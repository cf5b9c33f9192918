"""Any number of bits per code, stored as one plane of single bits after the other.

`unpack` is the inverse of `pack`. GGUF's types have layouts of their own; this one serves codes of
any width, 3 bits as well as 4, without a code ever crossing a byte.
"""

import numpy as np

from tqgguf.kernels.dtypes import U8


def packed_bytes(width: int, *, bits: int) -> int:
    """Bytes that `width` codes of `bits` bits take: whole bytes per plane."""
    return bits * ((width + 7) // 8)


def pack(codes: U8, *, bits: int) -> U8:
    """Pack codes below 2^bits: (n, width) uint8 -> (n, packed_bytes(width)) uint8."""
    planes = [np.packbits(codes & np.uint8(1 << bit), axis=1) for bit in range(bits)]
    return np.concatenate([codes[:, :0], *planes], axis=1)


def unpack(packed: U8, *, bits: int, width: int) -> U8:
    """Undo `pack`: (n, packed_bytes(width)) uint8 -> (n, width) uint8."""
    codes = np.zeros((len(packed), width), np.uint8)
    size = packed_bytes(width, bits=1)
    for bit in range(bits):
        plane = packed[:, bit * size : (bit + 1) * size]
        codes |= np.unpackbits(plane, axis=1, count=width) << np.uint8(bit)
    return codes
