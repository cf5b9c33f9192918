"""Choose the scales of a lattice type's blocks by least squares.

A block has one float16 d, and every run of `lattice.size` weights the scale d * (2 * step + 1).
With the codes held, the error is a parabola in the scale: s^2 e - 2 s c, c = sum of w x q and
e = sum of w q^2 over the run, q the points' coordinates. Codes are found at a few trial scales;
the least of their parabolas is close to the true error at any scale, which makes the search for d
and the steps cheap.
"""

import numpy as np

from tqgguf.kernels.dtypes import F16, F32
from tqgguf.kernels.lattice import OCTET, LatticeGrid, cells, point_sums
from tqgguf.kernels.scales import to_half
from tqgguf.kernels.search import reciprocal

# Trial scales, in units of a run's fourth-power mean, which moves with both bulk and outliers: they
# cover 96 % of the best scales of normal and of heavy-tailed weights. How many, and how many points
# of a cell's list to try at each, is a trade of error for time: see docs/LOG.md.
_TRIALS = {
    8: np.geomspace(0.20, 0.37, 7).astype(np.float32),
    4: np.geomspace(0.092, 0.185, 9).astype(np.float32),
}
_TRIED = {8: 2, 4: 1}
# What to try for the largest scale / d, by the highest step; above 2 * step + 1 it is clipped.
_HEADROOM = {
    15: np.linspace(22, 33, 12, dtype=np.float32),
    7: np.linspace(10, 16, 12, dtype=np.float32),
}

LatticeSums = tuple[F32, F32]


def fit_scales(x: F32, w: F32 | None, lattice: LatticeGrid) -> tuple[F16, F32]:
    """The scales of least weighted squared error.

    x, w: (size, n) float32, w or None -> d: (n,) float16, and what multiplies it to make the scales
    of the runs: (size / lattice.size, n) float32, odd.
    """
    n = x.shape[1]
    x = np.ascontiguousarray(x)  # or the memory's layout would decide the order of sums
    w = None if w is None else np.ascontiguousarray(w)
    runs = len(x) // lattice.size
    top = np.abs(x).max(axis=0)
    a = x * reciprocal(top)  # fourth powers of what is left neither overflow nor vanish
    a = _keep_parity(a, w) if lattice.shared_signs else np.abs(a, out=a)
    unit = fourth_mean(a, w, runs)
    v = (a.reshape(runs, -1, n) * reciprocal(unit)[:, None]).reshape(-1, lattice.k, n)
    sums = _try_scales(v, None if w is None else w.reshape(v.shape), runs, lattice)
    return choose_scales(sums, unit, top, highest=lattice.highest)


def choose_scales(
    sums: LatticeSums, unit: F32, top: F32, *, highest: int, signed: bool = False
) -> tuple[F16, F32]:
    """The best d and multiples for what was found at the trial scales.

    sums: c in units of `unit` (runs, n), and e, (trials, runs, n) each, of weights divided by top
    (n,). signed: the second half of the trials is that of negative scales. -> as `fit_scales`.
    """
    cross, energy = sums
    cross *= unit
    best = _best_scale(cross, energy)
    d = to_half(_choose_d(best, cross, energy, highest) * top)
    seen = d.astype(np.float32) * reciprocal(top)
    multiples = 2 * _choose_steps(seen, best, cross, energy, highest) + 1
    if signed:
        halves = zip(_halves(cross), _halves(energy), strict=True)
        up, down = (_error(seen * multiples, *half) for half in halves)
        multiples = np.where(down < up, -multiples, multiples)
    return d, multiples


def _halves(trials: F32) -> tuple[F32, F32]:
    middle = len(trials) // 2
    return trials[:middle], trials[middle:]


def _keep_parity(x: F32, w: F32 | None) -> F32:
    """Magnitudes; of an octet with an odd number of negatives the cheapest turns negative."""
    a = np.abs(x).reshape(-1, OCTET, x.shape[1])
    cost = a if w is None else a * w.reshape(a.shape)
    odd = np.logical_xor.reduce(x.reshape(a.shape) < 0, axis=1)
    turn = (cost == cost.min(axis=1, keepdims=True)) & odd[:, None]
    kept: F32 = np.where(turn, -a, a).reshape(x.shape)
    return kept


def fourth_mean(a: F32, w: F32 | None, runs: int) -> F32:
    """The fourth root of the weighted mean fourth power of every run: -> (runs, n)."""
    fourth = a * a
    fourth *= fourth
    if w is None:
        mean: F32 = fourth.reshape(runs, -1, a.shape[1]).mean(axis=1)
    else:
        fourth *= w
        total = w.reshape(runs, -1, a.shape[1]).sum(axis=1)
        mean = fourth.reshape(runs, -1, a.shape[1]).sum(axis=1) * reciprocal(total)
    return np.sqrt(np.sqrt(mean, out=mean), out=mean)


def _try_scales(v: F32, w: F32 | None, runs: int, lattice: LatticeGrid) -> LatticeSums:
    """Every run's sums (c, e) with the codes of each trial scale: two (trials, runs, n)."""
    trials = _TRIALS[lattice.k]
    wv = v if w is None else v * w
    found = [code_sums(v, wv, w, float(scale), lattice) for scale in trials]
    cross = np.empty((len(trials), runs, v.shape[2]), np.float32)
    energy = np.empty_like(cross)
    for i, scale in enumerate(trials):
        sums = found[i]
        for other in found[max(0, i - 1) : i] + found[i + 1 : i + 2]:
            sums = better(sums, other, scale)  # what a neighbour found may be nearer
        cross[i] = sums[0].reshape(runs, -1, v.shape[2]).sum(axis=1)
        energy[i] = sums[1].reshape(runs, -1, v.shape[2]).sum(axis=1)
    return cross, energy


def code_sums(v: F32, wv: F32, w: F32 | None, scale: float, lattice: LatticeGrid) -> LatticeSums:
    """Every group's sums with its best code at one scale: two (groups, n)."""
    cell = cells(v, scale)
    sums = point_sums(wv, w, lattice.listed[0].take(cell), lattice)[:2]
    for rank in range(1, _TRIED[lattice.k]):
        other = point_sums(wv, w, lattice.listed[rank].take(cell), lattice)[:2]
        sums = better(sums, other, np.float32(scale))
    return sums


def better(one: LatticeSums, other: LatticeSums, scale: np.float32) -> LatticeSums:
    """Elementwise the sums of less error s^2 e - 2 s c."""
    cross, energy = other[0] - one[0], other[1] - one[1]
    better = (energy * (scale / 2) < cross).astype(np.float32)  # a product is faster than np.where
    cross *= better
    cross += one[0]
    energy *= better
    energy += one[1]
    return cross, energy


def _best_scale(cross: F32, energy: F32) -> F32:
    """The scale at the bottom of the lowest parabola: (trials, runs, n) -> (runs, n)."""
    scale = cross * reciprocal(energy)
    lowest = (scale * cross).argmax(axis=0)
    best: F32 = np.maximum(np.take_along_axis(scale, lowest[None], axis=0)[0], 0)
    return best


def _choose_d(best: F32, cross: F32, energy: F32, highest: int) -> F32:
    """The d under which the steps nearest to the best scales cost least: -> (n,)."""
    top = best.max(axis=0)
    chosen: F32 = np.zeros_like(top)
    least = np.full_like(top, np.inf)
    for headroom in _HEADROOM[highest]:
        d = top / headroom
        error = _error(d * (2 * _step(best, d, highest) + 1), cross, energy).sum(axis=0)
        chosen = np.where(error < least, d, chosen)
        np.minimum(least, error, out=least)
    return chosen


def _choose_steps(d: F32, best: F32, cross: F32, energy: F32, highest: int) -> F32:
    """The best of the nearest step and its neighbours: d (n,) -> (runs, n)."""
    middle = _step(best, d, highest)
    chosen, least = middle, np.full_like(middle, np.inf)
    for shift in (0, -1, 1):
        step = np.clip(middle + shift, 0, highest)
        error = _error(d * (2 * step + 1), cross, energy)
        chosen = np.where(error < least, step, chosen)
        np.minimum(least, error, out=least)
    return chosen


def _step(scale: F32, d: F32, highest: int) -> F32:
    """The step whose scale is nearest: scale = d * (2 * step + 1)."""
    step = scale * (reciprocal(d) / 2)
    step -= np.float32(0.5)
    nearest: F32 = np.clip(np.rint(step), 0, highest)
    return nearest


def _error(scale: F32, cross: F32, energy: F32) -> F32:
    """The lowest parabola at a scale: (runs, n), two (trials, runs, n) -> (runs, n)."""
    error = energy * scale
    error -= 2 * cross
    error *= scale
    lowest: F32 = error.min(axis=0)
    return lowest
