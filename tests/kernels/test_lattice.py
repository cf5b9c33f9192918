"""The lattice kernels against exhaustive search."""

import numpy as np
import pytest

from tqgguf.formats import FORMATS, LatticeFormat
from tqgguf.kernels.lattice import (
    OCTET,
    LatticeGrid,
    cells,
    decode,
    nearest,
    pack_nibbles,
    unpack_nibbles,
)
from tqgguf.kernels.lattice_scales import fit_scales

ALL = {name: fmt.lattice for name, fmt in FORMATS.items() if isinstance(fmt, LatticeFormat)}
LATTICES = {name: lattice for name, lattice in ALL.items() if isinstance(lattice, LatticeGrid)}
TYPICAL = {8: 0.36, 4: 0.15}  # the best scale of N(0, 1), about


def normal(n, seed):
    return np.random.default_rng(seed).standard_normal((OCTET, n), dtype=np.float32)


def exhaustive(x, scale, w, lattice):
    """The least possible squared error of every octet: all points, all ways to turn one sign."""
    k, n = lattice.k, x.shape[1]
    v = np.abs(x).reshape(-1, k, n)
    w = w.reshape(v.shape)
    q = scale * lattice.points  # (m, k)
    distance = (w[:, None] * (v[:, None] - q[None, :, :, None]) ** 2).sum(axis=2)  # (halves, m, n)
    plain = distance.min(axis=1)
    if not lattice.shared_signs:
        return plain.sum(axis=0)
    turn = 4 * (w[:, None] * v[:, None] * q[None, :, :, None]).min(axis=2)
    extra = (distance + turn).min(axis=1) - plain
    odd = (x < 0).sum(axis=0) % 2
    return plain.sum(axis=0) + odd * extra.min(axis=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LATTICES)
def test_nearest_is_within_one_percent_of_exhaustive_search(name, weighted):
    lattice, x = LATTICES[name], normal(1000, seed=0)
    w = np.ones_like(x)
    if weighted:
        w = np.random.default_rng(1).lognormal(0, 1, x.shape).astype(np.float32)
    scale = np.full((1, 1000), TYPICAL[lattice.k], np.float32)
    codes = nearest(x, scale, w if weighted else None, lattice)
    ours = (w * (decode(codes, scale, lattice) - x) ** 2).sum(axis=0)
    best = exhaustive(x, TYPICAL[lattice.k], w, lattice)
    assert (ours >= best - 1e-4).all()
    assert ours.sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("name", LATTICES)
def test_the_number_of_minuses_is_even_where_it_must_be(name):
    lattice, x = LATTICES[name], normal(500, seed=2)
    x[:, :100] = 0
    scale = np.full((1, 500), 0.3, np.float32)
    minuses = np.bitwise_count(nearest(x, scale, None, lattice).signs)
    expected = {True: {0}, False: {0, 1}}[lattice.shared_signs]
    assert set(np.unique(minuses % 2)) == expected


@pytest.mark.parametrize("name", LATTICES)
def test_points_are_their_own_nearest(name):
    lattice = LATTICES[name]
    x = np.tile(lattice.points, (1, OCTET // lattice.k)).T.copy()
    codes = nearest(x, np.ones((1, x.shape[1]), np.float32), None, lattice)
    assert (codes.points == np.arange(x.shape[1])).all()
    assert not codes.signs.any()


@pytest.mark.parametrize("name", LATTICES)
def test_a_cell_lists_different_points_and_most_often_the_nearest_first(name):
    lattice = LATTICES[name]
    assert (np.diff(np.sort(lattice.listed[:, ::97], axis=0).astype(int), axis=0) > 0).all()
    v = np.abs(normal(1000, seed=5)).reshape(-1, lattice.k, 1000) / np.float32(TYPICAL[lattice.k])
    listed = lattice.listed[:, cells(v, 1.0)[0]]
    distance = ((lattice.points.T[:, listed] - v[0][:, None]) ** 2).sum(axis=0)
    assert (np.bincount(distance.argmin(axis=0)).argmax()) == 0


@pytest.mark.parametrize("name", LATTICES)
def test_fitted_scales_cannot_be_improved_much(name):
    lattice = LATTICES[name]
    x = np.random.default_rng(3).standard_normal((256, 16), dtype=np.float32)
    d, multiples = fit_scales(x, None, lattice)
    scale = d.astype(np.float32) * multiples

    def loss(scale):
        return ((decode(nearest(x, scale, None, lattice), scale, lattice) - x) ** 2).sum(axis=0)

    fitted = loss(scale)
    others = [loss(scale * np.float32(f)) for f in (0.9, 0.95, 1.05, 1.1)]
    assert fitted.sum() < min(other.sum() for other in others)


def test_nibbles_come_back():
    steps = np.random.default_rng(4).integers(0, 16, (16, 10), np.uint8)
    np.testing.assert_array_equal(unpack_nibbles(pack_nibbles(steps)), steps)
