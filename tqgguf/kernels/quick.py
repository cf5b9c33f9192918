"""Encode blocks of 32 weights at reading speed: one scale each, from the extremes.

x: (n, 32) float32, blocks as they lie in memory. Four neighbours move as one number of 16 bytes, so
that this is all the transposing there is: (8, 4 n), column 4 j + i holds weights i, i + 4 ... of
block j. Sums over a block then run along axis 0, and over four lanes at the end.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tqgguf.kernels.dtypes import F16, F32, U8
from tqgguf.kernels.search import reciprocal

_LANES = 4
_STRIP = 1 << 12  # blocks at a time


class Strip(NamedTuple):
    """Room for some blocks: their weights as lanes, (8, 4 n) float32, and codes, like it, uint8.

    New memory for every strip would cost as much as a third of the work.
    """

    y: F32
    codes: U8


def strips(x: F32) -> Iterator[tuple[slice, Strip]]:
    """Some blocks at a time, as lanes: x (n, 32) -> which they are, and room that holds them."""
    room = np.empty(32 * _STRIP, np.float32), np.empty(32 * _STRIP, np.uint8)
    for at in range(0, len(x), _STRIP):
        here = slice(at, min(at + _STRIP, len(x)))
        size = 32 * (here.stop - at)
        strip = Strip(room[0][:size].reshape(8, -1), room[1][:size].reshape(8, -1))
        np.copyto(strip.y.view(np.complex128), x[here].view(np.complex128).T)
        yield here, strip


def extremes(y: F32) -> tuple[F32, F32]:
    """The lowest and highest weight of every block: (8, 4 n) -> two (n,)."""
    low, high = (f.reduce(y, axis=0).reshape(-1, _LANES) for f in (np.minimum, np.maximum))
    low = np.minimum(np.minimum(low[:, 0], low[:, 1]), np.minimum(low[:, 2], low[:, 3]))
    high = np.maximum(np.maximum(high[:, 0], high[:, 1]), np.maximum(high[:, 2], high[:, 3]))
    return low, high


def signed_scale(low: F32, high: F32, level: int) -> F32:
    """The d that lays the weight of largest magnitude on -level."""
    peak = np.where(high > -low, high, low)
    scale: F32 = peak * np.float32(-1 / level)
    return scale


def codes(strip: Strip, scale: F32, shift: F32 | np.float32, top: int) -> U8:
    """What of 0..top lies below x / scale + shift: uses the strip up -> (8, 4 n) uint8."""
    y = strip.y
    y *= reciprocal(scale).repeat(_LANES)
    y += shift if isinstance(shift, np.floating) else shift.repeat(_LANES)
    np.minimum(y, np.float32(top), out=y)  # of bytes it takes four times as long
    np.copyto(strip.codes, y, casting="unsafe")
    return strip.codes


def signed_codes(strip: Strip, scale: F16) -> U8:
    """The integers nearest to x / scale as signed bytes: uses the strip up -> (8, 4 n)."""
    y = strip.y
    y *= reciprocal(scale.astype(np.float32)).repeat(_LANES)
    np.rint(y, out=y)
    np.copyto(strip.codes.view(np.int8), y, casting="unsafe")
    return strip.codes


def rows_of(packed: U8) -> U8:
    """Lanes as rows: (k, 4 n) uint8 -> (n, 4 k)."""
    words = packed.view(np.uint32)
    rows: U8 = np.ascontiguousarray(words.T).view(np.uint8)
    return rows


def low_nibbles(codes: U8) -> U8:
    """The lower four bits of every code: (8, 4 n) -> like it."""
    return (codes.view(np.uint32) & np.uint32(0x0F0F0F0F)).view(np.uint8)


def nibbles(codes: U8) -> U8:
    """Codes 0..15 of weights e and e + 16 in a byte: (8, 4 n) -> (n, 16)."""
    words = codes.view(np.uint32)  # shifting those is faster, and no code crosses a byte
    packed = words[4:] << np.uint32(4)
    packed |= words[:4]
    return rows_of(packed.view(np.uint8))


def fifth_bits(codes: U8) -> U8:
    """Bit 4 of every code, of weight e in bit e % 8 of byte e / 8: (8, 4 n) -> (n, 4)."""
    bits = codes.view(np.uint32) >> np.uint32(4) & np.uint32(0x01010101)
    word = bits[0::2] | bits[1::2] << np.uint32(4)
    byte = word | word >> np.uint32(7) | word >> np.uint32(14) | word >> np.uint32(21)
    bytes: U8 = byte.astype(np.uint8).T
    return bytes
