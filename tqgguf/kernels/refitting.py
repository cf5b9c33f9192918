"""The scales of a type while error feedback rounds: what moves them, and by how much.

Element-major, as in `tqgguf.kernels.feedback`: arrays of weights are (n_in, n), and error e and
pull H e are those of whole blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import as_half, clip, dot, moved, namespace, rint, to_numpy
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.protocols import ScalarFormat
from tqgguf.kernels.scales import as_groups, from_groups, to_half
from tqgguf.kernels.search import reciprocal


@dataclass(frozen=True)
class Movable:
    """Which scales of a type move: integers within limits under d and dmin, or none if fixed."""

    limits: tuple[int, int] | None = None
    offset_limits: tuple[int, int] | None = None
    fixed: bool = False

    @staticmethod
    def of(fmt: ScalarFormat) -> "Movable":
        """What the sweeps may move of a type."""
        fixed = not fmt.step_codes and not _has_half_d_alone(fmt.layout)
        return Movable(fixed=True) if fixed else Movable(fmt.step_codes, fmt.offset_codes)


def _has_half_d_alone(layout: np.dtype[np.void]) -> bool:
    names = layout.names or ()
    return "m" not in names and "d" in names and layout["d"] == np.float16


@dataclass(frozen=True)
class Scales:
    """Scales of some blocks: step of group g = d * sub[g], offset = -dmin * minima[g].

    d, dmin: (n_blocks, n), sub, minima: (n_groups, n). Of a type whose scales stay as fitted d is 1
    and sub the steps.
    """

    kind: Movable
    d: F32
    sub: F32
    dmin: F32
    minima: F32

    @staticmethod
    def blank(fmt: ScalarFormat, like: F32) -> "Scales":
        """Scales for all blocks of weights (n_in, n), in the library of `like`."""
        n_in, n = like.shape
        blocks, groups = ((n_in // size, n) for size in (fmt.block_size, fmt.group_size))
        values = (np.zeros(s, np.float32) for s in (blocks, groups, blocks, groups))
        return Scales(Movable.of(fmt), *(moved(a, like) for a in values))

    @property
    def arrays(self) -> tuple[F32, ...]:
        """What a revision changes."""
        return self.d, self.sub, self.dmin, self.minima

    def of(self, begin: int, end: int) -> "Scales":
        """Those of some of the blocks; the arrays are views."""
        groups = slice(begin * self.ratio, end * self.ratio)
        blocks = slice(begin, end)
        rows = (blocks, groups, blocks, groups)
        views = (a[r, :] for a, r in zip(self.arrays, rows, strict=True))
        return Scales(self.kind, *views)

    @property
    def ratio(self) -> int:
        """Groups to a block."""
        return int(self.sub.shape[0] // self.d.shape[0])

    def read(self, blocks: Blocks, fmt: ScalarFormat) -> tuple[F32, F32]:
        """Take those of (n_blocks, n) blocks -> the groups' steps and offsets, (n_groups, n)."""
        step, offset = (from_groups(a, blocks.shape[1]) for a in fmt.grid(blocks.reshape(-1)))
        zeros = np.zeros_like(step[:: self.ratio])
        if self.kind.fixed:
            values: Sequence[F32] = np.ones_like(zeros), step, zeros, np.zeros_like(step)
        else:
            d = blocks["d"].astype(np.float32)
            dmin = blocks["dmin"].astype(np.float32) if fmt.offset_codes else zeros
            each, least = (np.repeat(reciprocal(a), self.ratio, axis=0) for a in (d, dmin))
            sub = np.rint(step * each) if fmt.step_codes else np.ones_like(step)
            values = d, sub, dmin, np.rint(-offset * least)
        for ours, found in zip(self.arrays, values, strict=True):
            ours[...] = moved(found, ours)
        return moved(step, self.d), moved(offset, self.d)

    def write(self, blocks: Blocks, fmt: ScalarFormat) -> None:
        """Put those of some blocks of every row into (n_blocks, n) blocks. Raises WeightError."""
        if self.kind.fixed:
            return
        d, sub, dmin, minima = (to_numpy(a) for a in self.arrays)
        blocks["d"] = to_half(d)
        if self.kind.offset_limits:
            blocks["dmin"] = to_half(dmin)
        if fmt.store:
            groups = (as_groups(a, self.ratio) for a in (sub, minima))
            fmt.store(blocks.reshape(-1), *groups)

    def settle(self) -> None:
        """Integers under a scale of 0 are 0, or they would come back with it."""
        if self.kind.limits:
            self.sub[...] = self.sub * _as(self._spread(self.d) != 0, self.d)
            self.minima[...] = self.minima * _as(self._spread(self.dmin) != 0, self.d)

    def _spread(self, scale: F32) -> F32:
        """A block's scale for each of its groups: (n_blocks, n) -> (n_groups, n)."""
        if self.ratio == 1:
            return scale
        repeated: F32 = namespace(scale).repeat(scale, self.ratio, axis=0)
        return repeated

    def steps(self) -> F32:
        """(n_groups, n)."""
        if self.kind.limits is None:
            return self.sub if self.kind.fixed else self._spread(self.d)
        return self._spread(self.d) * self.sub

    def offsets(self) -> F32:
        """(n_groups, n)."""
        return -self._spread(self.dmin) * self.minima


def _as(mask: Any, x: F32) -> F32:
    """1 and 0 in x's dtype."""
    number: F32 = namespace(x).astype(mask, x.dtype)
    return number


def refit_scales(scales: Scales, units: F32, pull: F32, h: F32) -> Scales:
    """Every block's d and dmin at their least-squares values, given all other blocks as they are.

    units: (n_in, n), the levels of the weights; pull: like it; h: (n_blocks, size, size), H within
    every block.
    """
    xp = namespace(units)
    u, p = (xp.reshape(a, (*scales.d.shape[:1], -1, units.shape[1])) for a in (units, pull))
    along = u if scales.kind.limits is None else u * _along(scales.sub, u)
    h_along, dmin = h @ along, scales.dmin
    d = _refit_scale(scales.d, along, p, h_along)
    if scales.kind.offset_limits:
        p = p - (d - scales.d)[:, None, :] * h_along
        along = -_along(scales.minima, u)
        dmin = _refit_scale(dmin, along, p, h @ along)
    return Scales(scales.kind, d, scales.sub, dmin, scales.minima)


def _along(integers: F32, like: F32) -> F32:
    """A group's integer for each of its weights: (n_groups, n) -> (n_blocks, size, n)."""
    xp = namespace(like)
    size = like.shape[0] * like.shape[1] // integers.shape[0]
    along: F32 = xp.reshape(xp.repeat(integers, size, axis=0), like.shape)
    return along


def _refit_scale(scale: F32, along: F32, pull: F32, h_along: F32) -> F32:
    """Move float16 scales, (n_blocks, n), to their least-squares values, if that helps.

    Moving one by a moves the weights by a u, u = along, and e^T H e falls by
    2 a u^T p - a^2 u^T H u: most at a = u^T p / u^T H u. along, pull, h_along = H u: (n_blocks,
    size, n).
    """
    slope, curve = dot(pull, along), dot(along, h_along)
    change = as_half(scale + slope * reciprocal(curve)) - scale
    change *= _as(change * (2 * slope - change * curve) > 0, change)
    moved: F32 = scale + change
    return moved


def refit_integers(scales: Scales, units: F32, pull: F32, h: F32) -> Scales:
    """Every group's integers at their least-squares values, given all other groups, if that helps.

    Moving the step by a and the offset by b moves the weights by m = a u + b 1, u their levels, and
    e^T H e falls by 2 m^T p - m^T H m, p = H e. That is largest where its slope is 0:

        [u^T H u   u^T H 1] [a]   [u^T p]
        [u^T H 1   1^T H 1] [b] = [1^T p]

    units, pull: (n_in, n), h: (n_groups, size, size).
    """
    xp, code, low = namespace(h), scales.sub, scales.minima
    limits, offset_limits = scales.kind.limits, scales.kind.offset_limits
    if limits is None:
        raise AssertionError(scales.kind)
    d, dmin = (scales._spread(a) for a in (scales.d, scales.dmin))
    units, pull = (xp.reshape(a, (h.shape[0], -1, a.shape[1])) for a in (units, pull))
    hu = h @ units
    up, uhu = dot(units, pull), dot(units, hu)
    if offset_limits is None:
        sub = _moved(code, up * reciprocal(uhu), d, limits)
        a = (sub - code) * d
        sub = xp.where(a * (2 * up - a * uhu) > 0, sub, code)
        return Scales(scales.kind, scales.d, sub, scales.dmin, low)
    uh1, p1, h11 = xp.sum(hu, axis=1), xp.sum(pull, axis=1), xp.sum(h, axis=(1, 2))[:, None]
    det = uhu * h11 - uh1 * uh1
    sound = det > 1e-4 * uhu * h11  # or u is constant, and a step does what b does
    wish = xp.where(sound, (up * h11 - p1 * uh1) * reciprocal(det), up * reciprocal(uhu))
    sub = _moved(code, wish, d, limits)
    a = (sub - code) * d
    # the offset that suits the step as it was rounded
    minima = _moved(low, (a * uh1 - p1) / h11, dmin, offset_limits)
    b = (low - minima) * dmin
    better = 2 * (a * up + b * p1) - a * (a * uhu + 2 * b * uh1) - b * b * h11 > 0
    sub, minima = xp.where(better, sub, code), xp.where(better, minima, low)
    return Scales(scales.kind, scales.d, sub, scales.dmin, minima)


def _moved(code: F32, change: F32, scale: F32, limits: tuple[int, int]) -> F32:
    """The integer nearest to where code * scale changes by so much."""
    nearest = rint(code + change * reciprocal(scale))
    moved: F32 = clip(nearest, float(limits[0]), float(limits[1]))
    return moved
