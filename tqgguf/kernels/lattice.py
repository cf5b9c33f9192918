"""Encode with a lattice: a small group of weights shares one index into a list of points.

A point has k coordinates (8 or 4), all positive; signs are stored apart, one byte for an octet of
weights. Where a type saves a bit, the eighth sign follows from the other seven: an even number of
the eight is negative, and an octet of the wrong parity must turn one of its weights around.

The nearest point is not searched for among all of them. Each coordinate of a group falls into one
of a few intervals, and the group's cell, one of 65536, has a short list of the points nearest to
its centre, made once; only those are compared exactly.

Everything is element-major: x is (size, n) float32, one column per block, seen as (groups, k, n).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tqgguf.kernels.dtypes import F32, U8, U16, U32
from tqgguf.kernels.search import reciprocal

OCTET = 8  # weights whose signs share a byte
_CELLS = 1 << 16
_LISTED = 16  # points listed for a cell, all compared where importance bends distances
_COMPARED = {8: 8, 4: 6}  # so many, by k, where it does not

# Where |x| / scale is cut into intervals, and the centres of the intervals. The IQ2 types know the
# magnitudes 1, 25/8 and 43/8, the IQ3 types about the odd numbers to 15. Distances between them are
# multiples of 1/256, hence exact, and the lists the same on every machine.
_DYADIC = 256
_EDGES_8 = np.array([15.5, 24.5, 37.0], np.float32) / 8
_CENTRES = {
    8: np.array([7.5, 19.75, 30.0, 46.25], np.float32) / 8,
    4: np.arange(16, dtype=np.float32) + np.float32(0.5),
}

Bool = NDArray[np.bool_]
Index = NDArray[np.intp]


class Points(Protocol):
    """A list of points."""

    @property
    def points(self) -> F32:
        """(m, k)."""

    @property
    def energy(self) -> F32:
        """The squared length of every point, (m,)."""


class LatticeCodes(NamedTuple):
    """What a lattice type stores of its weights, besides their scales.

    points: (size / k, n) uint16, the index of each group's point.
    signs: (size / 8, n) uint8, bit j set where weight j of the octet is negative.
    """

    points: U16
    signs: U8

    @staticmethod
    def join(parts: list["LatticeCodes"]) -> "LatticeCodes":
        """The codes of consecutive octets as one."""
        return LatticeCodes(
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.signs for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class LatticeGrid:
    """The points of a lattice type, and how its weights share scales and signs.

    points: (m, k) float32 > 0; a weight decodes to +-scale * coordinate.
    size: weights that share a scale, a multiple of 8.
    shared_signs: whether the number of negative weights in an octet must be even.
    """

    points: F32
    size: int
    shared_signs: bool
    highest: int = 15  # steps are 0..15

    @property
    def k(self) -> int:
        """Weights per point, 8 or 4."""
        return int(self.points.shape[1])

    @cached_property
    def energy(self) -> F32:
        """The squared length of every point, (m,)."""
        energy: F32 = (self.points**2).sum(axis=1)
        return energy

    @cached_property
    def listed(self) -> U16:
        """The points nearest to the centre of every cell, nearest first: (16, 65536)."""
        return list_points(self.points, _CENTRES[self.k])

    def multiples(self, steps: U8 | U32) -> F32:
        """What multiplies d, odd: steps 0, 1 .. 15 -> 1, 3 .. 31."""
        odd: F32 = 2 * steps.astype(np.float32) + 1
        return odd

    def steps(self, multiples: F32) -> U8:
        """Undo `multiples`."""
        return (multiples.astype(np.uint8) - np.uint8(1)) // np.uint8(2)

    def nearest(self, x: F32, scale: F32, w: F32 | None) -> LatticeCodes:
        """The nearest codes under given scales, see `nearest` below."""
        return nearest(x, scale, w, self)

    def decode(self, codes: LatticeCodes, scale: F32) -> F32:
        """The values the reader will see, see `decode` below."""
        return decode(codes, scale, self)


def nearest(x: F32, scale: F32, w: F32 | None, lattice: LatticeGrid) -> LatticeCodes:
    """The nearest codes under given scales; the signs keep their parity at the least cost.

    x: (size, n), whole octets, at least one; scale: (s, n), each for size / s consecutive weights;
    w: (size, n) weighs the squared error, or None. All float32.
    """
    n = x.shape[1]
    x = np.ascontiguousarray(x)  # or the memory's layout would decide the order of sums
    v = np.abs(x).reshape(len(scale), -1, n) * reciprocal(scale)[:, None]
    v = v.reshape(-1, lattice.k, n)
    w = None if w is None else np.ascontiguousarray(w).reshape(v.shape)
    cell = cells(v, 1.0)
    negative = x.reshape(-1, OCTET, n) < 0
    if not lattice.shared_signs:
        points = lattice.listed[_compare(v, w, cell, lattice), cell]
        return LatticeCodes(points, pack_bits(negative))
    odd: Bool = np.logical_xor.reduce(negative, axis=1)
    points = lattice.listed[_compare_parity(v, w, cell, odd, lattice), cell]
    turned = odd.view(np.uint8) << _cheapest_turn(v, w, points, lattice)
    return LatticeCodes(points, pack_bits(negative) ^ turned)


def decode(codes: LatticeCodes, scale: F32, lattice: LatticeGrid) -> F32:
    """The values the reader will see: codes and scale (s, n) -> (size, n) float32."""
    n = codes.points.shape[1]
    values = gather(codes.points, lattice).reshape(-1, OCTET, n)
    bit = np.arange(OCTET, dtype=np.uint8)[:, None]
    negative = codes.signs[:, None] >> bit & np.uint8(1)
    values *= np.float32(1) - np.float32(2) * negative
    scaled: F32 = values.reshape(len(scale), -1, n) * scale[:, None]
    return scaled.reshape(-1, n)


def cells(v: F32, scale: float) -> Index:
    """The cell each group falls into: v (groups, k, n) / scale -> (groups, n), 0..65535."""
    if v.shape[1] == 4:
        level = np.clip(v * np.float32(1 / scale), 0, np.float32(15.5)).astype(np.uint8)
    else:
        edges = _EDGES_8 * np.float32(scale)
        level = (v > edges[0]).view(np.uint8) + (v > edges[1]).view(np.uint8)
        level += (v > edges[2]).view(np.uint8)
        return join_levels(level)
    return _join_nibbles(level)


def join_levels(level: U8) -> Index:
    """The cell of each octet: the intervals of its weights, 0..3, (octets, 8, n) -> (octets, n)."""
    return _join_nibbles(level[:, 0::2] << np.uint8(2) | level[:, 1::2])


def _join_nibbles(level: U8) -> Index:
    byte = level[:, 0::2] << np.uint8(4) | level[:, 1::2]
    cell: Index = (byte[:, 0] * np.uint16(256) + byte[:, 1]).astype(np.intp)
    return cell


def gather(points: U16, lattice: Points) -> F32:
    """The coordinates of points: (groups, n) -> (groups, k, n), not contiguous."""
    return lattice.points.take(points, axis=0).transpose(0, 2, 1)


def point_sums(wv: F32, w: F32 | None, points: U16, lattice: Points) -> tuple[F32, F32, F32]:
    """Sums over groups of w v g and of w g^2, and the products w v g, for given points g.

    wv, w: (groups, k, n), w or None for 1 -> two (groups, n), and (groups, k, n).
    """
    if w is None:
        product = wv * gather(points, lattice)
        return product.sum(axis=1), lattice.energy.take(points), product
    rows = np.ascontiguousarray(gather(points, lattice))
    product = wv * rows
    rows *= rows
    rows *= w
    return product.sum(axis=1), rows.sum(axis=1), product


def pack_bits(bits: Bool) -> U8:
    """Bits to bytes, the first lowest: (octets, 8, n) bool -> (octets, n) uint8."""
    packed = bits[:, 0].astype(np.uint8)
    for j in range(1, OCTET):
        packed |= bits[:, j].view(np.uint8) << np.uint8(j)
    return packed


def _compare(v: F32, w: F32 | None, cell: Index, lattice: LatticeGrid) -> U8:
    """Which point of its cell's list is nearest to each group: -> (groups, n) uint8."""
    wv = v if w is None else v * w
    best = _no_offer(cell.shape)
    for rank in range(_COMPARED[lattice.k] if w is None else _LISTED):
        _offer(best, rank, _distance(wv, w, lattice.listed[rank].take(cell), lattice)[0])
    return best[0]


def _compare_parity(v: F32, w: F32 | None, cell: Index, odd: Bool, lattice: LatticeGrid) -> U8:
    """The same where each odd octet turns one weight around: odd (octets, n).

    Turning weight j costs 4 w_j v_j g_j, so every group has two winners, one with its cheapest turn
    included, and an odd octet turns in that of its groups where this costs least.
    """
    wv = v if w is None else v * w
    plain, turned = _no_offer(cell.shape), _no_offer(cell.shape)
    for rank in range(_COMPARED[lattice.k] if w is None else _LISTED):
        error, product = _distance(wv, w, lattice.listed[rank].take(cell), lattice)
        _offer(plain, rank, error)
        _offer(turned, rank, error + 4 * product.min(axis=1))
    cost = (turned[1] - plain[1]).reshape(len(odd), -1, odd.shape[1])
    which = np.arange(cost.shape[1])[:, None] == cost.argmin(axis=1)[:, None]
    here = which & odd[:, None]
    return np.where(here.reshape(cell.shape), turned[0], plain[0])


def _cheapest_turn(v: F32, w: F32 | None, points: U16, lattice: LatticeGrid) -> U8:
    """The weight of every octet that costs least to turn around, 0..7: -> (octets, n)."""
    product = v * gather(points, lattice)
    if w is not None:
        product *= w
    octets = product.reshape(-1, OCTET, v.shape[2])
    place: U8 = octets.argmin(axis=1).astype(np.uint8)
    return place


def _no_offer(shape: tuple[int, ...]) -> tuple[U8, F32]:
    """The best rank and its error before anything was offered."""
    return np.zeros(shape, np.uint8), np.full(shape, np.inf, np.float32)


def _offer(best: tuple[U8, F32], rank: int, error: F32) -> None:
    """Replace in place what is worse; ranks ascend, so the latest to win is the largest."""
    won = (error < best[1]).view(np.uint8)
    np.maximum(best[0], won * np.uint8(rank), out=best[0])
    np.minimum(best[1], error, out=best[1])


def _distance(wv: F32, w: F32 | None, points: U16, lattice: LatticeGrid) -> tuple[F32, F32]:
    """Squared distance less |v|^2, (groups, n), and the products w v g, (groups, k, n)."""
    cross, energy, product = point_sums(wv, w, points, lattice)
    cross *= np.float32(-2)
    cross += energy
    return cross, product


def list_points(points: F32, centres: F32) -> U16:
    """The nearest points of every cell, numbered by its intervals, first coordinate highest."""
    k = points.shape[1]
    digits = np.indices((len(centres),) * k, dtype=np.uint8).reshape(k, -1).T
    half = (points**2).sum(axis=1) / 2
    order = np.arange(len(points), dtype=np.int32)
    listed = np.empty((_LISTED, _CELLS), np.uint16)
    for start in range(0, _CELLS, 1024):
        part = slice(start, start + 1024)
        cost = (half - centres[digits[part]] @ points.T) * np.float32(_DYADIC)
        key = cost.astype(np.int32) * np.int32(len(points)) + order  # of equals, the first
        few = np.partition(key.reshape(len(key), -1, 256), _LISTED, axis=2)[:, :, :_LISTED]
        nearest = np.sort(few.reshape(len(key), -1), axis=1)[:, :_LISTED]
        listed[:, part] = nearest.T % np.int32(len(points))
    return listed


def pack_seven_signs(signs: U8) -> U32:
    """Four octets' signs without their eighth, which follows: (4 m, n) uint8 -> (m, n) uint32."""
    seven = (signs & np.uint8(127)).astype(np.uint32).reshape(-1, 4, signs.shape[1])
    shift = np.arange(0, 28, 7, dtype=np.uint32)[:, None]
    packed: U32 = np.bitwise_or.reduce(seven << shift, axis=1)
    return packed


def pack_nibbles(steps: U8) -> U8:
    """Two steps to a byte, the first low: (2 m, n) uint8, values 0..15 -> (m, n) uint8."""
    return steps[0::2] | steps[1::2] << np.uint8(4)


def unpack_nibbles(packed: U8) -> U8:
    """Undo `pack_nibbles`: (m, n) uint8 -> (2 m, n) uint8."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
    return both.reshape(-1, packed.shape[1])
