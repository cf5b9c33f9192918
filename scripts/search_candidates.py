"""Find again what the encoders' searches for scales try: RANGES, FACTORS and the lattices' _TRIALS.

Groups of N(0,1) and of Student-t(5) weights; of a pool of candidates the one is taken that lowers
the mean error most, then the one that lowers it most beside the first, and so on. The error is that
of the best scale in closed form, before scales are quantized. For lattices: between which trial
scales nearly all best scales lie.

    python scripts/search_candidates.py
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tqgguf.formats import FORMATS
from tqgguf.formats._candidates import IQ4_LEVELS
from tqgguf.formats._lattice import LatticeFormat
from tqgguf.kernels import lattice_scales
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.lattice import LatticeGrid
from tqgguf.kernels.scales import affine, symmetric
from tqgguf.kernels.search import reciprocal

Gain = Callable[[F32], F32]  # groups (size, n) -> how much their squared error falls, (n,)
AFFINE = {"Q2_K": (16, 3), "Q4_K, Q4_1": (32, 15), "Q5_K, Q5_1": (32, 31)}  # group, highest code
SYMMETRIC = {
    "Q3_K": (16, np.arange(-4, 4, dtype=np.float32)),
    "Q6_K": (16, np.arange(-32, 32, dtype=np.float32)),
    "Q4_0": (32, np.arange(-8, 8, dtype=np.float32)),
    "Q5_0": (32, np.arange(-16, 16, dtype=np.float32)),
    "IQ4_NL, IQ4_XS": (32, IQ4_LEVELS),
}
LATTICES = ("IQ2_S", "IQ3_S")
STEPS = np.round(np.arange(-6, 17) / 10, 1)  # of a grid's step, by which an end of it may move
SCALES = np.geomspace(0.06, 0.6, 60)


def main() -> None:
    """Parse the arguments and print a line per type."""
    parser = argparse.ArgumentParser(description="candidates of the encoders' searches")
    parser.add_argument("--groups", type=int, default=6144)
    parser.add_argument("--count", type=int, default=10, help="candidates to find")
    args = parser.parse_args()
    ranges = [(float(a), float(b)) for a in STEPS for b in STEPS]
    factors = [round(sign * f / 100, 2) for sign in (1, -1) for f in range(70, 131, 2)]
    for name, (size, levels) in AFFINE.items():
        pool = {str(r): affine_gain(levels, r) for r in ranges if sum(r) < levels - 1}
        print(name, *select(pool, groups(size, args.groups), args.count), sep="\n  ", flush=True)
    for name, (size, grid) in SYMMETRIC.items():
        pool = {str(f): symmetric_gain(grid, f) for f in factors}
        print(name, *select(pool, groups(size, args.groups), args.count), sep="\n  ", flush=True)
    for name in LATTICES:
        low, high = trial_span(name, groups(FORMATS[name].block_size, args.groups // 8))
        print(f"{name}: 96 % of the best scales are {low:.3f} to {high:.3f} fourth-power means")


def groups(size: int, count: int) -> F32:
    """Half normal, half heavy-tailed: (size, count) float32 of unit variance."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((size, count // 2))
    heavy = rng.standard_t(5, (size, count - count // 2)) * np.sqrt(3 / 5)
    return np.concatenate([normal, heavy], axis=1).astype(np.float32)


def affine_gain(levels: int, ends: tuple[float, float]) -> Gain:
    """What one range explains of every group's variance."""

    def gain(x: F32) -> F32:
        sums = affine(x, None, levels=levels, ranges=(ends,), signed=True)
        covariance = sums.qx - sums.q * sums.x / sums.total
        variance = sums.qq - sums.q * sums.q / sums.total
        return covariance**2 * reciprocal(variance) + sums.x**2 / sums.total

    return gain


def symmetric_gain(levels: F32, factor: float) -> Gain:
    """What one factor explains of every group's energy."""

    def gain(x: F32) -> F32:
        qx, qq = symmetric(x, None, levels=levels, factors=(factor,))
        explained: F32 = qx * qx * reciprocal(qq)
        return explained

    return gain


def select(pool: dict[str, Gain], x: F32, count: int) -> Iterator[str]:
    """The candidates in the order in which they help, with the relative error reached."""
    energy = np.square(x, dtype=np.float64).sum()
    gains = {name: gain(x).astype(np.float64) for name, gain in pool.items()}
    reached = np.zeros(x.shape[1])
    for _ in range(count):
        best = max(gains, key=lambda name: np.maximum(reached, gains[name]).sum())
        reached = np.maximum(reached, gains[best])
        yield f"{best}: {1 - reached.sum() / energy:.5f}"


def trial_span(name: str, x: F32) -> Sequence[float]:
    """The second and the 98th percentile of best scales, in units of a run's fourth-power mean."""
    fmt = FORMATS[name]
    if not isinstance(fmt, LatticeFormat):
        raise AssertionError(name)
    lattice = fmt.lattice
    if not isinstance(lattice, LatticeGrid):
        raise AssertionError(name)
    runs = len(x) // lattice.size
    a = np.abs(x)
    unit = np.sqrt(np.sqrt((a**4).reshape(runs, -1, x.shape[1]).mean(axis=1)))
    v = (a.reshape(runs, -1, x.shape[1]) / unit[:, None]).reshape(-1, lattice.k, x.shape[1])
    gains = []
    for scale in SCALES:
        sums = lattice_scales.code_sums(v, v, None, float(scale), lattice)
        cross, energy = (s.reshape(runs, -1, x.shape[1]).sum(axis=1) for s in sums)
        gains.append(cross**2 * reciprocal(energy))
    best = SCALES[np.argmax(gains, axis=0)]
    low, high = np.percentile(best, (2, 98))
    return float(low), float(high)


if __name__ == "__main__":
    main()
