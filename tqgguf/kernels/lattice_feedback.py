"""Round a matrix to a lattice type so that its output changes least: feedback by whole octets.

The aim is that of `tqgguf.kernels.feedback`, and so is H, but the codes of eight weights are one
decision: an octet's error is made up for by the octets that follow, and afterwards every octet and
every scale is visited again with all the others as they are.

Everything is element-major: w is (n_in, n) float32, one column per row of the matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tqgguf.kernels.dtypes import F32, I64, U8, U16, Blocks
from tqgguf.kernels.feedback import Moments
from tqgguf.kernels.greedy import Factor
from tqgguf.kernels.lattice import OCTET, LatticeCodes
from tqgguf.kernels.protocols import Lattice, LatticeFormat
from tqgguf.kernels.scales import to_half
from tqgguf.kernels.search import reciprocal

_BLOCK = 256  # weights


def round_matrix(
    w: F32, moments: Moments, fmt: LatticeFormat, *, sweeps: int = 4
) -> tuple[Blocks, F32]:
    """Quantize with error feedback.

    w: (n_in, n) float32 -> blocks: (n_in / 256, n) and the weights they decode to, like w.
    sweeps: how often every scale and every octet is revisited after the greedy pass.
    """
    count = len(w) // _BLOCK
    blocks = np.empty((count, w.shape[1]), fmt.layout)
    parts = [_Part(b * _BLOCK, w, fmt.lattice) for b in range(count)]
    error = _greedy(parts, blocks, moments.factor, fmt)
    for _ in range(sweeps):
        for part, block in zip(parts, blocks, strict=True):
            _revisit(part, block, error, moments, fmt)
    for part, block in zip(parts, blocks, strict=True):
        fmt.pack(block, part.codes(slice(0, len(part.w))))
    return blocks, w - error


class _Part:
    """One block of every row: its weights, (256, n), where they are in w, and their codes."""

    def __init__(self, start: int, w: F32, lattice: Lattice) -> None:
        self.here = slice(start, start + _BLOCK)
        self.w = w[self.here]
        self.lattice = lattice
        self.points: U16 = np.zeros((_BLOCK // lattice.k, w.shape[1]), np.uint16)
        self.signs: U8 = np.zeros((_BLOCK // OCTET, w.shape[1]), np.uint8)

    def codes(self, weights: slice) -> LatticeCodes:
        """Views of the codes of whole octets."""
        k = self.lattice.k
        points = self.points[weights.start // k : weights.stop // k]
        return LatticeCodes(points, self.signs[weights.start // OCTET : weights.stop // OCTET])


def _greedy(parts: Sequence["_Part"], blocks: Blocks, factor: Factor, fmt: LatticeFormat) -> F32:
    """Round block by block in the factor's order -> errors, (n_in, n)."""
    order, error = factor.order, np.empty((len(factor.order), blocks.shape[1]), np.float32)
    for begin in range(0, len(order), _BLOCK):
        here = slice(begin, begin + _BLOCK)
        block, inside = order[begin] // _BLOCK, order[here] % _BLOCK
        carried = factor.v[:begin, here].T @ error[:begin]
        turn = _Turn(inside, factor.v[here, here], carried, error[here])
        blocks[block] = _round_block(parts[block], turn, fmt)
    return error[np.argsort(order)]


class _Turn(NamedTuple):
    """A block's part of the factor: arrays of 256, in its order of columns, whole octets."""

    inside: I64  # the columns
    own: F32
    carried: F32  # what earlier errors ask
    error: F32  # written


def _round_block(part: "_Part", turn: _Turn, fmt: LatticeFormat) -> Blocks:
    """Fit the scales to what earlier errors made of the weights, then round octet by octet."""
    inside, own, carried, error = turn
    w, back = part.w[inside], np.argsort(inside)
    corrected = (w + _inverse(own.T) @ carried)[back]
    importance = np.repeat(np.diagonal(own)[back, None] ** 2, w.shape[1], axis=1)
    blocks: Blocks = fmt.fit(corrected, importance)
    scales = fmt.scales(blocks)
    for at in _octets(slice(0, len(w))):
        octet = slice(inside[at.start], inside[at.start] + OCTET)
        corner = own[at, at]
        target = w[at] + _inverse(corner.T) @ carried[at]
        scale = scales[[octet.start // part.lattice.size]]
        codes = _nearest(target, scale, corner @ corner.T, part.lattice)
        part.codes(octet).points[:], part.codes(octet).signs[:] = codes
        error[at] = w[at] - part.lattice.decode(codes, scale)
        carried[at.stop :] += own[at, at.stop :].T @ error[at]
    return blocks


@dataclass
class _Visit:
    """What a block's revision keeps up to date: pull is H e, minus half the slope of e^T H e."""

    part: _Part
    h: F32  # (256, 256)
    error: F32  # (256, n)
    pull: F32
    d: F32  # (n,)
    multiples: F32  # (runs, n), odd: a run's scale is d * multiple

    def change(self, weights: slice, change: F32) -> None:
        """Add to the quantized values of some weights."""
        self.error[weights] -= change
        self.pull -= self.h[:, weights] @ change


def _revisit(
    part: _Part, blocks: Blocks, errors: F32, moments: Moments, fmt: LatticeFormat
) -> None:
    """Refit the scales and code the octets of a block anew, given everything else."""
    d, multiples = fmt.read_d(blocks).astype(np.float32), fmt.multiples(blocks)
    own, pull = moments.block(part.here), moments.pull(part.here, errors)
    visit = _Visit(part, own, errors[part.here], pull, d, multiples)
    size = part.lattice.size
    for run in range(len(multiples)):
        weights = slice(run * size, (run + 1) * size)
        _refit_run(visit, run, weights)
        for at in _octets(weights):
            _recode(visit, at, d * multiples[run])
    _refit_d(visit)
    fmt.write_d(blocks, to_half(visit.d))
    fmt.store(blocks, multiples)


def _recode(visit: _Visit, at: slice, scale: F32) -> None:
    """Give an octet the codes nearest to what the rest of the matrix wants of it, if better."""
    part, metric = visit.part, visit.h[at, at]
    now = part.w[at] - visit.error[at]
    wish = _inverse(metric) @ visit.pull[at]  # how far the octet's values should move
    codes = _nearest(now + wish, scale[None], metric, part.lattice)
    move = part.lattice.decode(codes, scale[None]) - now
    gain = _dot(move, 2 * visit.pull[at] - metric @ move)
    better = gain > 0
    old = part.codes(at)
    old.points[:] = np.where(better, codes.points, old.points)
    old.signs[:] = np.where(better, codes.signs, old.signs)
    visit.change(at, np.where(better, move, 0).astype(np.float32))


def _refit_run(visit: _Visit, run: int, weights: slice) -> None:
    """Move a run's scale to the odd multiple of d that suits its codes best, if that helps."""
    lattice, multiple = visit.part.lattice, visit.multiples[run]
    units = lattice.decode(visit.part.codes(weights), np.copysign(np.float32(1), multiple)[None])
    along = _dot(visit.pull[weights], units)
    curve = _dot(units, visit.h[weights, weights] @ units)
    size = np.abs(multiple)  # its sign tells how the points are shifted
    wish = size + along * reciprocal(curve) * reciprocal(visit.d)
    odd = 2 * np.clip(np.rint((wish - 1) / 2), 0, lattice.highest) + 1
    change = (odd - size) * visit.d
    better = change * (2 * along - change * curve) > 0
    visit.multiples[run] = np.where(better, np.copysign(odd, multiple), multiple)
    visit.change(weights, np.where(better, change, 0).astype(np.float32) * units)


def _refit_d(visit: _Visit) -> None:
    """Move the block's d to its least-squares value, if that helps."""
    everything = slice(0, len(visit.error))
    units = visit.part.lattice.decode(visit.part.codes(everything), visit.multiples)
    along, curve = _dot(visit.pull, units), _dot(units, visit.h @ units)
    wish = np.clip(visit.d + along * reciprocal(curve), 0, np.finfo(np.float16).max)
    d = to_half(wish).astype(np.float32)
    change = d - visit.d
    better = change * (2 * along - change * curve) > 0
    visit.d = np.where(better, d, visit.d)
    visit.change(everything, np.where(better, change, 0).astype(np.float32) * units)


def _nearest(target: F32, scale: F32, metric: F32, lattice: Lattice) -> LatticeCodes:
    """The codes nearest by the metric's diagonal; all of it gains 1 % at ten times the cost."""
    weight = np.repeat(np.diagonal(metric)[:, None], target.shape[1], axis=1)
    return lattice.nearest(target, scale, weight)


def _octets(weights: slice) -> list[slice]:
    return [slice(i, i + OCTET) for i in range(weights.start, weights.stop, OCTET)]


def _inverse(a: F32) -> F32:
    inverse: F32 = np.linalg.inv(a.astype(np.float64)).astype(np.float32)
    return inverse


def _dot(a: F32, b: F32) -> F32:
    """Sum of a * b over axis 0: (size, n) -> (n,)."""
    sums: F32 = np.einsum("in,in->n", a, b)
    return sums
