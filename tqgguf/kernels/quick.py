"""Encode blocks at reading speed, from their extremes or a few sums.

x: (n, size) float32, blocks as they lie in memory. Four neighbours move as one number of 16 bytes,
so that this is all the transposing there is: (size / 4, 4 n), column 4 j + i holds weights i, i + 4
... of block j. Sums over a block then run along axis 0, and over four lanes at the end.

What takes time is told in docs/LOG.md: calls on small arrays count as much as passes over large
ones, an array's minimum with a number takes twice that with an array.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tqgguf.kernels.dtypes import F16, F32, I64, U8, U32
from tqgguf.kernels.scales import TERNARY_BEGIN, TERNARY_ROUNDS, to_half
from tqgguf.kernels.search import reciprocal

_LANES = 4
_STRIP = 3 << 16  # weights at a time: rows a power of two apart share lines of a cache
_MANY = 1 << 10  # blocks
_LEAST = np.float32(1e-37)  # has a reciprocal
_FARTHEST = np.float32(2.4)
_QUATERNARY_ROUNDS = 1
_NEAR = np.float32(1e-6)

_Fold = Callable[[F32, F32], F32]


class Strip(NamedTuple):
    """Some blocks: their weights as lanes, (rows, 4 n) float32, room like it, and uint8 codes.

    New memory for every strip would cost as much as a third of the work.
    """

    y: F32
    room: F32
    codes: U8

    @property
    def words(self) -> U32:
        """The codes of four neighbours as one number: (rows, n)."""
        return self.codes.view(np.uint32)


def strips(x: F32) -> Iterator[tuple[slice, Strip]]:
    """Some blocks at a time, as lanes: x (n, size) -> which they are, and room that holds them."""
    n, size = x.shape
    step = min(n, _STRIP // size)
    room = [np.empty(size * step, dtype) for dtype in (np.float32, np.float32, np.uint8)]
    for at in range(0, n, step or 1):
        here = slice(at, min(at + step, n))
        strip = Strip(*(r[: size * (here.stop - at)].reshape(size // _LANES, -1) for r in room))
        np.copyto(strip.y.view(np.complex128), x[here].view(np.complex128).T)
        yield here, strip


def extremes(y: F32) -> tuple[F32, F32]:
    """The lowest and highest weight of every block: (rows, 4 n) -> two (n,)."""
    return (
        _folded(np.minimum, np.minimum.reduce(y, axis=0)),
        _folded(np.maximum, np.maximum.reduce(y, axis=0)),
    )


def signed_peak(y: F32) -> F32:
    """The weight of largest magnitude of every block: (rows, 4 n) -> (n,)."""
    low, high = extremes(y)
    size = np.maximum(high, -low)
    np.copysign(size, high + low, out=size)
    return size


def codes(strip: Strip, scale: F32, shift: float, top: int) -> U32:
    """What of 0..top lies below x / scale + shift: uses the strip up -> (rows, n) words."""
    y = strip.y
    y *= _lanes(reciprocal(scale))
    y += np.float32(shift)
    np.minimum(y, _row(y, top), out=y)
    return _whole(strip)


def codes_above(strip: Strip, low: F32, scale: F32, top: int) -> U32:
    """What of 0..top is nearest to (x - low) / scale: uses the strip up -> (rows, n) words."""
    y, start = strip.y, low - scale * np.float32(0.5)
    y -= _lanes(start)
    inverse: F32 = np.reciprocal(np.maximum(scale, _LEAST))
    y *= _lanes(inverse)
    if (np.abs(low) * np.float32(2**-18) > scale).any():  # else there is nothing above top + 0.52
        np.minimum(y, _row(y, top), out=y)
    return _whole(strip)


def signed_codes(strip: Strip, scale: F16) -> U32:
    """The integers nearest to x / scale as signed bytes: uses the strip up -> (rows, n) words."""
    y = strip.y
    y *= _lanes(reciprocal(scale.astype(np.float32)))
    np.rint(y, out=y)
    np.copyto(strip.codes.view(np.int8), y, casting="unsafe")
    return strip.words


def store(words: U32, field: U8) -> None:
    """Write a field of every block: (k, n) words -> field (n, 4 k or more), inside the blocks."""
    place = field.view("<u4")
    for i, row in enumerate(words):
        place[:, i] = row


def nibbles(words: U32) -> U32:
    """Codes 0..15 of weights e and e + 16 in a byte: (8, n) -> (4, n)."""
    packed = words[4:] << np.uint32(4)  # no code crosses a byte
    packed |= words[:4]
    return packed


def fifth_bits(words: U32) -> U32:
    """Bit 4 of every code, of weight e in bit e % 8 of byte e / 8: (8, n) -> (1, n)."""
    bits = words >> np.uint32(4) & np.uint32(0x01010101)
    pairs = bits[0::2] | bits[1::2] << np.uint32(4)
    pairs *= np.uint32(1 << 24 | 1 << 17 | 1 << 10 | 1 << 3)  # moves byte i to bit i of the highest
    return _joined(pairs)


def quarters(words: U32) -> U32:
    """Codes 0..3 of four neighbours in a byte: (4 k, n) -> (k, n)."""
    return _joined(words * np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6))


def _joined(words: U32) -> U32:
    """The highest bytes of four words one after the other: (4 k, n) -> (k, n)."""
    first, second, third, fourth = (words[i::4] for i in range(4))
    joined = first >> np.uint32(24)
    joined |= second >> np.uint32(16) & np.uint32(0xFF00)
    joined |= third >> np.uint32(8) & np.uint32(0xFF0000)
    joined |= fourth & np.uint32(0xFF000000)
    return joined


def ternary(strip: Strip) -> tuple[F16, U32]:
    """The d of w = d * (q - 1), q in 0..2, and the codes, blocks of 256: uses the strip up.

    -> (n,) and (64, n) words. d is what `tqgguf.kernels.scales.ternary_scale` finds.
    """
    below = np.less(strip.y, np.float32(0)).view(np.uint32)
    a = np.abs(strip.y, out=strip.y)
    d = to_half(_ternary_scale(a, strip))
    edge = d.astype(np.float32) * np.float32(0.5)
    edge[edge == 0] = np.inf
    far = np.greater(a, _lanes(edge), out=strip.codes.view(bool)).view(np.uint32)
    below &= far
    below <<= np.uint32(1)
    words = far + np.uint32(0x01010101)  # no byte borrows, as each has its 1
    words -= below
    return d, words


def _ternary_scale(a: F32, strip: Strip) -> F32:
    """Lloyd's rounds on magnitudes, (64, 4 n) -> (n,)."""
    size, room = np.float32(256), strip.room
    sums = np.empty((2, a.shape[1]), np.float32)
    np.einsum("in,in,in->n", a, a, a, out=sums[0])
    np.einsum("in,in->n", a, a, out=sums[1])
    cubes, squares = _folded(np.add, sums)
    d: F32 = cubes / np.maximum(squares, _LEAST) * TERNARY_BEGIN
    for _ in range(TERNARY_ROUNDS):
        edge = d * np.float32(0.5)
        lanes = _lanes(edge)
        np.maximum(a, lanes, out=room)
        total = _folded(np.add, np.add.reduce(room, axis=0))
        near = _counted(np.less_equal(a, lanes, out=strip.codes.view(bool)))
        d = (total - edge * near) / (size - near)
    return d


def quaternary(strip: Strip) -> tuple[F16, U32]:
    """The d of w = d * (q - 1), q in 0..3, and the codes, blocks of 64: uses the strip up.

    -> (n,) and (16, n) words. The weight of largest magnitude begins at 2.4 or at -2.4, and the
    better scale is fitted again to its codes. Ternary weights are met.
    """
    u, peak = strip.y, signed_peak(strip.y)
    u *= _lanes(reciprocal(peak))
    scale = _first_quaternary_scale(u, strip)
    for _ in range(_QUATERNARY_ROUNDS):
        q = np.multiply(u, _lanes(reciprocal(scale)), out=strip.room)
        np.rint(q, out=q)
        np.minimum(q, _row(q, 2), out=q)
        scale = _fitted(np.maximum(q, _row(q, -1), out=q), u)[0]
    scale[_ternary_blocks(u)] = 1
    d = to_half(scale * peak)
    u *= _lanes(peak * reciprocal(d.astype(np.float32)))
    words = np.zeros((u.shape[0], u.shape[1] // _LANES), np.uint32)
    for edge in (-0.5, 0.5, 1.5):
        words += np.greater(u, np.float32(edge), out=strip.codes.view(bool)).view(np.uint32)
    return d, words


def _ternary_blocks(u: F32) -> I64:
    """Which blocks hold -1, 0 and 1 alone: (rows, 4 n) -> indices. Few pass by their first row."""
    at = np.flatnonzero(_folded(np.maximum, np.abs(u[0] - np.rint(u[0]))) < _NEAR)
    rest = u.reshape(len(u), -1, _LANES)[:, at]
    found: I64 = at[(np.abs(rest - np.rint(rest)) < _NEAR).all(axis=(0, 2))]
    return found


def _first_quaternary_scale(u: F32, strip: Strip) -> F32:
    """The better of two scales for weights whose largest is 1: (16, 4 n) -> (n,).

    Codes of the second have the other sign, so one rounding serves both.
    """
    whole = np.multiply(u, _FARTHEST, out=strip.room)
    np.rint(whole, out=whole)
    q = np.maximum(whole, _row(u, -1))
    up, gain_up = _fitted(q, u)
    down, gain_down = _fitted(np.minimum(whole, _row(u, 1), out=q), u)
    return np.where(gain_up < gain_down, -down, up)


def _fitted(q: F32, u: F32) -> tuple[F32, F32]:
    """The scale of least error for these codes, and by how much it lowers the error: two (n,)."""
    sums = np.empty((2, u.shape[1]), np.float32)
    np.einsum("in,in->n", q, u, out=sums[0])
    np.einsum("in,in->n", q, q, out=sums[1])
    qu, qq = _folded(np.add, sums)
    scale = qu * reciprocal(qq)
    return scale, qu * scale


def _folded(f: _Fold, lanes: F32) -> F32:
    """A sum or extreme over the lanes of every block: (..., 4 n) -> (..., n)."""
    pairs = f(lanes[..., :-2], lanes[..., 2:])  # half in vain, but in one piece: faster
    return f(pairs[..., ::_LANES], pairs[..., 1::_LANES])


def _lanes(v: F32) -> F32:
    """A number of every block in its lanes: (n,) -> (4 n,). Many are faster by halves."""
    if v.size < _MANY:
        return v.repeat(_LANES)
    two, four = np.empty(v.size, np.complex64), np.empty(v.size, np.complex128)
    two.real = two.imag = v
    four.real = four.imag = two.view(np.float64)
    return four.view(np.float32)


def _row(y: F32, value: float) -> F32:
    """An array to compare lanes with: (rows, 4 n) -> (4 n,)."""
    return np.full(y.shape[1], value, np.float32)


def _counted(is_so: "np.ndarray[tuple[int, ...], np.dtype[np.bool]]") -> F32:
    """How many of a block, less than 256: (rows, 4 n) -> (n,)."""
    words: U32 = np.add.reduce(is_so.view(np.uint32), axis=0, dtype=np.uint32)
    words *= np.uint32(0x01010101)  # sums of four bytes in the highest
    words >>= np.uint32(24)
    return words.astype(np.float32)


def _whole(strip: Strip) -> U32:
    """The weights cut to whole numbers, as words."""
    np.copyto(strip.codes, strip.y, casting="unsafe")
    return strip.words
