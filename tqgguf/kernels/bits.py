"""Move small unsigned integers in and out of bytes, element-major.

Every `pack_*` is a bijection and `unpack_*` is its inverse. Nothing here knows scales or formats.
"""

import numpy as np

from tqgguf.kernels.dtypes import U8

_4, _6, _15, _63 = (np.uint8(value) for value in (4, 6, 15, 63))


def pack_planes(codes: U8, *, bits: int) -> U8:
    """Pack `8 // bits` planes of codes into one plane of bytes, plane 0 in the low bits.

    codes: (..., planes, width, n) uint8, values < 2**bits -> (..., width, n) uint8.
    """
    packed = codes[..., 0, :, :].copy()
    for plane in range(1, codes.shape[-3]):
        # a fifth of the time that shifting takes
        packed |= codes[..., plane, :, :] * np.uint8(1 << plane * bits)
    return packed


def unpack_planes(packed: U8, *, bits: int) -> U8:
    """Undo `pack_planes`: (..., width, n) uint8 -> (..., 8 // bits, width, n) uint8."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None, None]
    return (packed[..., None, :, :] >> shifts) & np.uint8(2**bits - 1)


def pack_trits(codes: U8) -> U8:
    """Pack up to five digits to the base of 3: (digits, width, n) uint8 -> (width, n) uint8.

    The first is the highest: byte / 256 = sum of digit i / 3^(i + 1), rounded up.
    """
    return as_fractions(trits_number(codes))


def trits_number(codes: U8) -> U8:
    """Up to five digits to the base of 3 as a number of five: (digits, width, n) -> (width, n)."""
    number: U8 = codes[0].copy()
    for digit in codes[1:]:
        number *= np.uint8(3)
        number += digit
    number *= np.uint8(3 ** (5 - len(codes)))
    return number


def as_fractions(numbers: U8) -> U8:
    """Of n / 243 the next multiple of 1 / 256: n of any shape -> like it, the numerators."""
    fractions = numbers.astype(np.uint16)
    fractions *= np.uint16(256)
    fractions += np.uint16(242)
    fractions //= np.uint16(243)
    return fractions.astype(np.uint8)


def pack_6bit_pairs(scales: U8, mins: U8) -> U8:
    """Pack eight 6-bit scales and eight 6-bit mins: two (8, n) uint8 -> (12, n) uint8.

    bytes 0..3   s0..s3 in bits 0-5, bits 4-5 of s4..s7 in bits 6-7
    bytes 4..7   m0..m3 in bits 0-5, bits 4-5 of m4..m7 in bits 6-7
    bytes 8..11  bits 0-3 of s4..s7 below bits 0-3 of m4..m7
    """
    low = scales[:4] | (scales[4:] >> _4) << _6
    middle = mins[:4] | (mins[4:] >> _4) << _6
    high = scales[4:] & _15 | mins[4:] << _4
    return np.concatenate([low, middle, high])


def unpack_6bit_pairs(packed: U8) -> tuple[U8, U8]:
    """Undo `pack_6bit_pairs`: (12, n) uint8 -> two (8, n) uint8."""
    low, middle, high = packed[:4], packed[4:8], packed[8:]
    scales = np.concatenate([low & _63, high & _15 | (low >> _6) << _4])
    mins = np.concatenate([middle & _63, high >> _4 | (middle >> _6) << _4])
    return scales, mins


def pack_6bit(codes: U8) -> U8:
    """Pack sixteen 6-bit values: (16, n) uint8 -> (12, n) uint8.

    bytes 0..7   bits 0-3 of c0..c7 below bits 0-3 of c8..c15
    bytes 8..11  bits 4-5 of c0..c3, c4..c7, c8..c11, c12..c15 from low to high
    """
    low = pack_planes((codes & _15).reshape(2, 8, -1), bits=4)
    high = pack_planes((codes >> _4).reshape(4, 4, -1), bits=2)
    return np.concatenate([low, high])


def unpack_6bit(packed: U8) -> U8:
    """Undo `pack_6bit`: (12, n) uint8 -> (16, n) uint8."""
    low = unpack_planes(packed[:8], bits=4).reshape(16, -1)
    high = unpack_planes(packed[8:], bits=2).reshape(16, -1)
    return low | high << _4
