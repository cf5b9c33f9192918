"""The scales of a type while error feedback rounds: what moves them, and by how much.

Element-major, as in `tqgguf.kernels.feedback`; error e and pull H e are those of a block.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import as_half, clip, dot, moved, namespace, rint, to_numpy
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.protocols import ScalarFormat
from tqgguf.kernels.scales import to_half
from tqgguf.kernels.search import reciprocal


@dataclass(frozen=True)
class Kind:
    """Which scales of a type move: integers within limits under d and dmin, or none if fixed."""

    limits: tuple[int, int] | None = None
    offset_limits: tuple[int, int] | None = None
    fixed: bool = False


@dataclass
class Scales:
    """A block column's scales: step of group g = d * sub[g], offset = -dmin * minima[g].

    d, dmin: (n,), sub, minima: (groups, n). Of a type whose scales stay as fitted d is 1 and sub
    the steps. blocks: what they were read from.
    """

    kind: Kind
    d: F32
    sub: F32
    dmin: F32
    minima: F32
    blocks: Blocks = field(default_factory=lambda: np.empty(0, "V1"))

    @property
    def arrays(self) -> tuple[F32, ...]:
        """What a block's revision changes."""
        return self.d, self.sub, self.dmin, self.minima

    @staticmethod
    def read(blocks: Blocks, fmt: ScalarFormat, like: F32) -> "Scales":
        """The scales in the library of `like`."""
        step, offset = fmt.grid(blocks)
        zeros = np.zeros_like(step)
        if not fmt.step_codes and (offset.any() or not _has_half_d(blocks.dtype)):
            kind, values = Kind(fixed=True), (np.ones_like(step[0]), step, zeros[0], zeros)
        else:
            d = blocks["d"].astype(np.float32)
            dmin = blocks["dmin"].astype(np.float32) if fmt.offset_codes else zeros[0]
            sub = np.rint(step * reciprocal(d)) if fmt.step_codes else np.ones_like(step)
            minima = np.rint(-offset * reciprocal(dmin))
            kind, values = Kind(fmt.step_codes, fmt.offset_codes), (d, sub, dmin, minima)
        d, sub, dmin, minima = (moved(a, like) for a in values)
        return Scales(kind, d, sub, dmin, minima, blocks)

    @staticmethod
    def blank(fmt: ScalarFormat, like: F32) -> "Scales":
        """Scales to be fitted, in the library of `like`, and blocks for them."""
        n, groups = like.shape[1], fmt.block_size // fmt.group_size
        d, dmin, minima = (np.zeros(s, np.float32) for s in (n, n, (groups, n)))
        values = (d, np.ones((groups, n), np.float32), dmin, minima)
        d, sub, dmin, minima = (moved(a, like) for a in values)
        kind = Kind(fmt.step_codes, fmt.offset_codes)
        return Scales(kind, d, sub, dmin, minima, np.zeros(n, fmt.layout))

    def here(self) -> "Scales":
        """The same as NumPy's arrays."""
        d, sub, dmin, minima = (to_numpy(a) for a in self.arrays)
        return Scales(self.kind, d, sub, dmin, minima, self.blocks)

    def settle(self) -> None:
        """Integers under a scale of 0 are 0, or they would come back with it."""
        if self.kind.limits:
            self.sub *= _as(self.d != 0, self.d)
            self.minima *= _as(self.dmin != 0, self.d)

    def step(self, g: int) -> F32:
        """The steps of group g, (n,)."""
        step: F32 = self.d * self.sub[g, :]
        return step

    def write(self, fmt: ScalarFormat) -> None:
        """Put them into the blocks, NumPy's arrays into theirs. Raises WeightError."""
        if self.kind.fixed:
            return
        self.blocks["d"] = to_half(self.d)
        if self.kind.offset_limits:
            self.blocks["dmin"] = to_half(self.dmin)
        if fmt.store:
            fmt.store(self.blocks, self.sub, self.minima)


def _as(mask: Any, x: F32) -> F32:
    """1 and 0 in x's dtype."""
    number: F32 = namespace(x).astype(mask, x.dtype)
    return number


def _has_half_d(layout: np.dtype[np.void]) -> bool:
    return "d" in (layout.names or ()) and layout["d"] == np.float16


def refit_group(scales: Scales, g: int, units: F32, pull: F32, h: F32) -> F32:
    """Move a group's integer scale and minimum to their least-squares values, if that helps.

    Moving the step by a and the offset by b moves the weights by m = a u + b 1, u their levels, and
    e^T H e falls by 2 m^T p - m^T H m, p = H e. That is largest where its slope is 0:

        [u^T H u   u^T H 1] [a]   [u^T p]
        [u^T H 1   1^T H 1] [b] = [1^T p]

    units, pull: (size, n), h: (size, size) -> m, (size, n).
    """
    xp, limits, offset_limits = namespace(h), scales.kind.limits, scales.kind.offset_limits
    if limits is None:
        still: F32 = xp.zeros_like(units)
        return still  # the group is the block: refit_block does it
    code, low = scales.sub[g, :], scales.minima[g, :]
    ones = xp.sum(h, axis=0)
    up, uhu, uh1 = dot(units, pull), dot(units, h @ units), ones @ units
    none = xp.zeros_like(up)
    if offset_limits is None:
        sub = _moved(code, up * reciprocal(uhu), scales.d, limits)
        a = (sub - code) * scales.d
        better = a * (2 * up - a * uhu) > 0
        scales.sub[g, :] = xp.where(better, sub, code)
        moves: F32 = xp.where(better, a, none) * units
        return moves
    p1, h11 = xp.sum(pull, axis=0), xp.sum(ones)
    det = uhu * h11 - uh1 * uh1
    sound = det > 1e-4 * uhu * h11  # or u is constant, and a step does what b does
    wish = xp.where(sound, (up * h11 - p1 * uh1) * reciprocal(det), up * reciprocal(uhu))
    sub = _moved(code, wish, scales.d, limits)
    a = (sub - code) * scales.d
    # the offset that suits the step as it was rounded
    minima = _moved(low, (a * uh1 - p1) / h11, scales.dmin, offset_limits)
    b = (low - minima) * scales.dmin
    better = 2 * (a * up + b * p1) - a * (a * uhu + 2 * b * uh1) - b * b * h11 > 0
    scales.sub[g, :] = xp.where(better, sub, code)
    scales.minima[g, :] = xp.where(better, minima, low)
    change: F32 = xp.where(better, a, none) * units + xp.where(better, b, none)
    return change


def _moved(code: F32, change: F32, scale: F32, limits: tuple[int, int]) -> F32:
    """The integer nearest to where code * scale changes by so much."""
    nearest = rint(code + change * reciprocal(scale))
    moved: F32 = clip(nearest, float(limits[0]), float(limits[1]))
    return moved


def refit_block(scales: Scales, units: F32, error: F32, pull: F32, h: F32, group: int) -> None:
    """Move a block's d (and dmin) to their least-squares values, if that helps."""
    if scales.kind.fixed:
        return
    repeat = namespace(units).repeat
    _refit(scales.d, units * repeat(scales.sub, group, axis=0), error, pull, h)
    if scales.kind.offset_limits:
        _refit(scales.dmin, -repeat(scales.minima, group, axis=0), error, pull, h)


def _refit(scale: F32, along: F32, error: F32, pull: F32, h: F32) -> None:
    """Move a float16 scale, (n,), to its least-squares value, if that helps.

    Moving it by a moves the weights by a u, u = along, and e^T H e falls by
    2 a u^T p - a^2 u^T H u: most at a = u^T p / u^T H u.
    """
    h_along = h @ along
    slope, curve = dot(pull, along), dot(along, h_along)
    change = as_half(scale + slope * reciprocal(curve)) - scale
    change *= _as(change * (2 * slope - change * curve) > 0, change)
    scale += change
    error -= change * along
    pull -= change * h_along
