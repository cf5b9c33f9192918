"""The lattice of IQ1_S and IQ1_M: eight weights share an index into a list of ternary points.

A weight decodes to scale * (coordinate + shift), coordinates -1, 0 or 1, the shift 1/8 or -1/8.
Points and shifts together make twice as many points, and where every octet has a shift of its own
these are all there is to it. Where a run of octets shares one, the scale's sign says which, and its
magnitude multiplies.

As in `tqgguf.kernels.lattice`, a group's cell has a short list of the points nearest to its centre.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tqgguf.kernels.dtypes import F16, F32, U8, U16, U32
from tqgguf.kernels.lattice import (
    OCTET,
    Index,
    LatticeCodes,
    gather,
    join_levels,
    list_points,
    point_sums,
)
from tqgguf.kernels.lattice_scales import LatticeSums, better, choose_scales, fourth_mean
from tqgguf.kernels.search import reciprocal

SHIFT = np.float32(1 / 8)
HIGHEST = 7  # steps are 0..7
_SIGNS = (1, -1)  # of the shift, in the order of the points
_CENTRES = np.array([-1, -1 / 4, 1 / 4, 1], np.float32)  # of the intervals that 0 and +-1/2 bound
_COMPARED = 12  # points of a cell's list for the final codes

# Trial scales in units of a run's fourth-power mean and points tried at each: see docs/LOG.md.
_TRIALS = np.geomspace(0.62, 1.25, 6).astype(np.float32)
_TRIED = 2


@dataclass(frozen=True, eq=False)
class TernaryGrid:
    """The points of a ternary lattice type, and how its weights share scales and shifts.

    ternary: (m, 8) float32, coordinates -1, 0, 1. size: weights that share a scale.
    shared_shift: whether they share the shift too.
    """

    ternary: F32
    size: int
    shared_shift: bool
    k: int = OCTET
    highest: int = HIGHEST

    @cached_property
    def points(self) -> F32:
        """(2 m, 8) float32: all points shifted up, then all shifted down."""
        return np.concatenate([self.ternary + SHIFT * sign for sign in _SIGNS])

    @cached_property
    def energy(self) -> F32:
        """The squared length of every point, (2 m,)."""
        energy: F32 = (self.points**2).sum(axis=1)
        return energy

    @cached_property
    def listed(self) -> U16:
        """The unshifted points nearest to the centre of every cell: (16, 65536)."""
        return list_points(self.ternary, _CENTRES)

    def multiples(self, steps: U8 | U32) -> F32:
        """What multiplies d, odd: steps 0..7, and 8 more where the shared shift is negative."""
        odd = 2 * (steps & np.uint8(HIGHEST)).astype(np.float32) + 1
        return np.where(steps > HIGHEST, -odd, odd)

    def steps(self, multiples: F32) -> U8:
        """Undo `multiples`."""
        step = (np.abs(multiples).astype(np.uint8) - np.uint8(1)) // np.uint8(2)
        return step + np.where(multiples < 0, np.uint8(HIGHEST + 1), np.uint8(0))

    def nearest(self, x: F32, scale: F32, w: F32 | None) -> LatticeCodes:
        """The nearest codes under given scales: see `tqgguf.kernels.lattice.nearest`."""
        n = x.shape[1]
        v = np.ascontiguousarray(x).reshape(len(scale), -1, n) * reciprocal(np.abs(scale))[:, None]
        v = v.reshape(-1, OCTET, n)
        w = None if w is None else np.ascontiguousarray(w).reshape(v.shape)
        wv = v if w is None else v * w
        found = [self._nearest(v, wv, w, sign) for sign in (0, 1)]
        if self.shared_shift:
            down = np.repeat(scale < 0, len(v) // len(scale), axis=0)
        else:
            down = found[1][1] < found[0][1]
        points: U16 = np.where(down, found[1][0], found[0][0])
        return LatticeCodes(points, np.zeros(points.shape, np.uint8))

    def decode(self, codes: LatticeCodes, scale: F32) -> F32:
        """The values the reader will see: codes and scale (s, n) -> (size, n) float32."""
        n = codes.points.shape[1]
        values = np.ascontiguousarray(gather(codes.points, self)).reshape(len(scale), -1, n)
        values *= np.abs(scale)[:, None]
        return values.reshape(-1, n)

    def _nearest(self, v: F32, wv: F32, w: F32 | None, down: int) -> tuple[U16, F32]:
        """The nearest point of one shift and its squared distance less |v|^2: (octets, n) each."""
        cell, first = self._cells(v, 1.0, down), np.uint16(down * len(self.ternary))
        points = self.listed[0].take(cell) + first
        least = self._distance(wv, w, points)
        for rank in range(1, _COMPARED):
            other = self.listed[rank].take(cell) + first
            error = self._distance(wv, w, other)
            np.copyto(points, other, where=error < least)
            np.minimum(least, error, out=least)
        return points, least

    def _distance(self, wv: F32, w: F32 | None, points: U16) -> F32:
        cross, energy, _ = point_sums(wv, w, points, self)
        cross *= np.float32(-2)
        cross += energy
        return cross

    def _cells(self, v: F32, scale: float, down: int) -> Index:
        """The cell of each octet: v (octets, 8, n) / scale -> (octets, n)."""
        middle = SHIFT * np.float32(_SIGNS[down])
        level = (v > np.float32(scale) * (middle - np.float32(0.5))).view(np.uint8)
        for edge in (0, 0.5):
            level = level + (v > np.float32(scale) * (middle + np.float32(edge))).view(np.uint8)
        return join_levels(level)

    def try_scales(self, v: F32, w: F32 | None, runs: int) -> LatticeSums:
        """Every run's sums with the codes of each trial scale: two (trials, runs, n)."""
        wv, n = v if w is None else v * w, v.shape[2]
        found = [[self._code_sums(v, wv, w, float(s), down) for s in _TRIALS] for down in (0, 1)]
        if not self.shared_shift:
            both = zip(*found, _TRIALS, strict=True)
            found = [[better(up, down, scale) for up, down, scale in both]]
        parts = [sums for sign in found for sums in sign]
        cross, energy = (
            np.stack([sums[i].reshape(runs, -1, n).sum(axis=1) for sums in parts]) for i in (0, 1)
        )
        return cross, energy

    def _code_sums(self, v: F32, wv: F32, w: F32 | None, scale: float, down: int) -> LatticeSums:
        """Every octet's sums with its best code at one scale and shift: two (octets, n)."""
        cell, first = self._cells(v, scale, down), np.uint16(down * len(self.ternary))
        sums = point_sums(wv, w, self.listed[0].take(cell) + first, self)[:2]
        for rank in range(1, _TRIED):
            other = point_sums(wv, w, self.listed[rank].take(cell) + first, self)[:2]
            sums = better(sums, other, np.float32(scale))
        return sums


def fit_scales(x: F32, w: F32 | None, lattice: TernaryGrid) -> tuple[F16, F32]:
    """The scales of least weighted squared error: see `tqgguf.kernels.lattice_scales.fit_scales`.

    Where runs share a shift, a negative multiple says that theirs is.
    """
    runs, n = len(x) // lattice.size, x.shape[1]
    top = np.abs(x).max(axis=0)
    a = np.ascontiguousarray(x) * reciprocal(top)
    w = None if w is None else np.ascontiguousarray(w)
    unit = fourth_mean(a, w, runs)
    v = (a.reshape(runs, -1, n) * reciprocal(unit)[:, None]).reshape(-1, OCTET, n)
    sums = lattice.try_scales(v, None if w is None else w.reshape(v.shape), runs)
    return choose_scales(sums, unit, top, highest=HIGHEST, signed=lattice.shared_shift)
