"""Round a matrix so that its output changes least, not its weights (GPTQ, arXiv 2210.17323).

For y = W x with second moments H = E[x x^T] the error to be small is tr(E H E^T), E = W - Q. Rows
are independent, columns are not: an error made in one column is made up for in those that follow,
and afterwards every column and every scale is visited again with all the others as they are.

Everything is element-major: w is (n_in, n) float32, one column per row of the matrix, so a block of
weights is a slab of rows, as formats want it.
"""

from dataclasses import dataclass

import numpy as np

from tqgguf.kernels.dtypes import F32, F64, U8, Blocks
from tqgguf.kernels.protocols import ScalarFormat
from tqgguf.kernels.search import nearest, reciprocal

DAMPING = 0.01  # of the mean of H's diagonal, added to it
_STRIP = 32  # columns between two updates of the rest of a block


@dataclass(frozen=True)
class Moments:
    """H, damped, and its factor: H = V V^T with V upper triangular. Both (n_in, n_in) float32."""

    h: F32
    v: F32


def prepare(h: F32 | F64, *, damping: float = DAMPING) -> Moments:
    """Damp and factor second moments; any H that is finite will do, rank-deficient or zero.

    h: (n_in, n_in), symmetric and positive semidefinite up to rounding.
    """
    full = np.asarray(h, np.float64)
    mean = float(np.diagonal(full).mean()) or 1.0
    index = np.arange(len(full))
    while True:
        damped = full.copy()
        damped[index, index] = np.maximum(np.diagonal(full), 0) + damping * mean
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            damping *= 4  # rounding made H indefinite by more than the damping
            continue
        return Moments(damped.astype(np.float32), lower[::-1, ::-1].astype(np.float32))


def output_error(w: F32, q: F32, h: F32) -> F64:
    """The squared error of every row's output: (n_in, n), (n_in, n), (n_in, n_in) -> (n,)."""
    e = w - q
    out: F64 = np.einsum("in,in->n", e, h @ e, dtype=np.float64)
    return out


def round_matrix(
    w: F32, moments: Moments, fmt: ScalarFormat, *, sweeps: int = 4
) -> tuple[Blocks, F32]:
    """Quantize with error feedback.

    w: (n_in, n) float32 -> blocks: (n_in / block_size, n) and the weights they decode to, like w.
    sweeps: how often every scale and every code is revisited after the greedy pass.
    """
    state = _greedy(w, moments, fmt)
    for _ in range(sweeps):
        for block in range(len(state.blocks)):
            _revisit(state, block, moments.h, fmt)
    for block, codes in zip(state.blocks, state.codes, strict=True):
        fmt.pack(block, codes.astype(np.uint8))
    return state.blocks, w - state.error


@dataclass
class _State:
    """A rounding in the making: blocks hold scales, error is w - q, (n_in, n)."""

    blocks: Blocks  # (n_blocks, n)
    codes: U8  # (n_blocks, block_size, n) uint8
    error: F32


def _greedy(w: F32, moments: Moments, fmt: ScalarFormat) -> _State:
    size = fmt.block_size
    n_blocks, n = len(w) // size, w.shape[1]
    error = np.empty_like(w)
    codes = np.empty((n_blocks, size, n), np.uint8)
    fitted = []
    for b in range(n_blocks):
        here = slice(b * size, (b + 1) * size)
        v = moments.v[here, here]
        carried = moments.v[: here.start, here].T @ error[: here.start]  # (size, n)
        corrected = w[here] + np.linalg.solve(v.T.astype(np.float64), carried).astype(np.float32)
        importance = np.broadcast_to((np.diagonal(v) ** 2)[:, None], corrected.shape)
        blocks = fmt.fit(corrected, importance)
        fitted.append(blocks)
        step, offset = fmt.grid(blocks)
        _round_block(w[here], carried, v, step, offset, fmt, codes[b], error[here])
    return _State(np.stack(fitted), codes, error)


def _round_block(
    w: F32, carried: F32, v: F32, step: F32, offset: F32, fmt: ScalarFormat, codes: U8, error: F32
) -> None:
    """Round a block's columns in turn; carried is what earlier errors ask of each, times V_cc."""
    for begin in range(0, len(w), _STRIP):
        end = min(begin + _STRIP, len(w))
        for c in range(begin, end):
            g = c // fmt.group_size
            target = w[c] + carried[c] / v[c, c]
            codes[c] = nearest(target, step[g], offset[g], fmt.levels)
            error[c] = w[c] - (step[g] * fmt.levels[codes[c]] + offset[g])
            carried[c + 1 : end] += v[c, c + 1 : end, None] * error[c]
        carried[end:] += v[begin:end, end:].T @ error[begin:end]


def _revisit(state: _State, b: int, h: F32, fmt: ScalarFormat) -> None:
    """Refit the scales and reround the codes of block b, given everything else."""
    size, group = fmt.block_size, fmt.group_size
    here = slice(b * size, (b + 1) * size)
    local = np.ascontiguousarray(h[here, here])
    pull = h[here] @ state.error  # (size, n): minus half the error's slope along every weight
    error, codes = state.error[here], state.codes[b]
    scales = _Scales.read(state.blocks[b], fmt)
    for g in range(size // group):
        part = slice(g * group, (g + 1) * group)
        before = error[part].copy()
        _refit_group(scales, g, fmt.levels[codes[part]], error[part], pull[part], local[part, part])
        pull[part] -= local[part, part] @ (before - error[part])
        _reround(codes[part], error[part], pull[part], local[part, part], scales, g, fmt)
        change = before - error[part]
        pull[: part.start] -= local[: part.start, part] @ change
        pull[part.stop :] -= local[part.stop :, part] @ change
    _refit_block(scales, fmt.levels[codes], error, pull, local, group)
    scales.write(state.blocks[b], fmt)


def _reround(
    codes: U8, error: F32, pull: F32, h: F32, scales: "_Scales", g: int, fmt: ScalarFormat
) -> None:
    """Coordinate descent over a group's codes; keeps error and the group's own pull up to date."""
    step, offset = scales.step(g), scales.offset(g)
    for c in range(len(codes)):
        value = step * fmt.levels[codes[c]] + offset
        codes[c] = nearest(value + pull[c] / h[c, c], step, offset, fmt.levels)
        change = step * fmt.levels[codes[c]] + offset - value
        error[c] -= change
        pull -= h[:, c, None] * change


@dataclass
class _Scales:
    """A block column's scales: step of group g = d * sub[g], offset = -dmin * minima[g]."""

    d: F32  # (n,)
    sub: F32  # (groups, n)
    dmin: F32
    minima: F32
    limits: tuple[int, int] | None = None
    offset_limits: tuple[int, int] | None = None
    fixed: tuple[F32, F32] | None = None  # step and offset of a type whose scales stay as fitted

    @staticmethod
    def read(blocks: Blocks, fmt: ScalarFormat) -> "_Scales":
        step, offset = fmt.grid(blocks)
        if not fmt.step_codes and (offset.any() or "d" not in (blocks.dtype.names or ())):
            return _Scales(step[0], step, step[0], step, fixed=(step, offset))
        d = blocks["d"].astype(np.float32)
        dmin = blocks["dmin"].astype(np.float32) if fmt.offset_codes else np.zeros_like(d)
        sub = np.rint(step * reciprocal(d)) if fmt.step_codes else np.ones_like(step)
        minima = np.rint(-offset * reciprocal(dmin))
        return _Scales(d, sub, dmin, minima, fmt.step_codes, fmt.offset_codes)

    def step(self, g: int) -> F32:
        step: F32 = self.fixed[0][g] if self.fixed else self.d * self.sub[g]
        return step

    def offset(self, g: int) -> F32:
        offset: F32 = self.fixed[1][g] if self.fixed else -self.dmin * self.minima[g]
        return offset

    def write(self, blocks: Blocks, fmt: ScalarFormat) -> None:
        if self.fixed:
            return
        blocks["d"] = self.d.astype(np.float16)
        if self.offset_limits:
            blocks["dmin"] = self.dmin.astype(np.float16)
        if fmt.store:
            fmt.store(blocks, self.sub, self.minima)


def _refit_group(scales: _Scales, g: int, levels: F32, error: F32, pull: F32, h: F32) -> None:
    """Move a group's integer scale and minimum to their least-squares values, if that helps."""
    if scales.limits is None:
        return  # the group is the block: _refit_block does it
    hl = h @ levels
    ones = h.sum(axis=0)
    along, curve = np.einsum("in,in->n", pull, levels), np.einsum("in,in->n", levels, hl)
    pulled, total = pull.sum(axis=0), np.float32(ones.sum())
    cross = ones @ levels
    ds, do = along * reciprocal(curve), np.zeros_like(along)
    if scales.offset_limits:
        det = curve * total - cross * cross
        ok = det > 1e-4 * curve * total
        inverse = np.where(ok, reciprocal(np.where(ok, det, 1)), 0)
        ds = np.where(ok, (along * total - pulled * cross) * inverse, ds)
        do = np.where(ok, (pulled * curve - along * cross) * inverse, 0)
    sub = np.clip(np.rint(scales.sub[g] + ds * reciprocal(scales.d)), *scales.limits)
    ds = (sub - scales.sub[g]) * scales.d
    minima = scales.minima[g]
    if scales.offset_limits:
        # the minimum that suits the step as it was rounded
        do = (pulled - ds * cross) / total
        minima = np.clip(
            np.rint(scales.minima[g] - do * reciprocal(scales.dmin)), *scales.offset_limits
        )
        do = -(minima - scales.minima[g]) * scales.dmin
    gain = 2 * (ds * along + do * pulled) - ds * (ds * curve + 2 * do * cross) - do * do * total
    better = gain > 0
    scales.sub[g] = np.where(better, sub, scales.sub[g])
    scales.minima[g] = np.where(better, minima, scales.minima[g])
    error -= np.where(better, ds, 0) * levels + np.where(better, do, 0)


def _refit_block(scales: _Scales, levels: F32, error: F32, pull: F32, h: F32, group: int) -> None:
    """Move a block's d (and dmin) to their least-squares values, if that helps."""
    if scales.fixed:
        return
    units = levels * np.repeat(scales.sub, group, axis=0)
    hu = h @ units
    ds = np.einsum("in,in->n", pull, units) * reciprocal(np.einsum("in,in->n", units, hu))
    d = (scales.d + ds).astype(np.float16).astype(np.float32)
    _accept(scales, "d", d, units, hu, error, pull)
    if scales.offset_limits:
        units = -np.repeat(scales.minima, group, axis=0)
        hu = h @ units
        ds = np.einsum("in,in->n", pull, units) * reciprocal(np.einsum("in,in->n", units, hu))
        dmin = (scales.dmin + ds).astype(np.float16).astype(np.float32)
        _accept(scales, "dmin", dmin, units, hu, error, pull)


def _accept(
    scales: _Scales, name: str, new: F32, units: F32, hu: F32, error: F32, pull: F32
) -> None:
    old = getattr(scales, name)
    change = new - old
    gain = 2 * change * np.einsum("in,in->n", pull, units)
    gain -= change * change * np.einsum("in,in->n", units, hu)
    change = np.where(gain > 0, change, 0)
    setattr(scales, name, old + change)
    error -= change * units
    pull -= change * hu
