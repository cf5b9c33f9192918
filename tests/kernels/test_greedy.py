"""The first rounding: each weight is rounded to what all errors before it ask of it."""

import math

import numpy as np
import pytest

from tests.kernels.test_feedback import correlated
from tqgguf.formats import FORMATS
from tqgguf.kernels import feedback, greedy

N_IN = {"Q8_0": 160, "Q4_1": 288, "Q3_K": 512}


@pytest.mark.parametrize("n_in", [32, 96, 320, 512, 576, 896])
def test_blocks_of_any_type_stay_together_and_units_are_whole_runs(n_in):
    diagonal = np.random.default_rng(31).random(n_in)
    order = greedy.falling(diagonal)
    np.testing.assert_array_equal(np.sort(order), np.arange(n_in))
    for together in (32, math.gcd(n_in, 256)):
        assert (np.ptp((order // together).reshape(-1, together), axis=1) == 0).all()
    units = greedy.units(n_in)
    assert [u.stop for u in units] == [*(u.start for u in units[1:]), n_in]
    assert all(u.start % 32 == 0 and u.stop - u.start <= 128 for u in units)


@pytest.mark.parametrize("name", N_IN)
def test_a_weight_becomes_the_level_nearest_to_what_errors_before_it_ask(name):
    """By H itself, not its factor: those to come are where they lessen e^T H e most."""
    n_in, fmt, rng = N_IN[name], FORMATS[name], np.random.default_rng(32)
    w = rng.standard_normal((n_in, 4)).astype(np.float32)
    moments = feedback.factored(correlated(rng, n_in))
    blocks, q = feedback.round_matrix(w, moments, fmt, sweeps=0)
    step = np.concatenate([fmt.grid(b)[0].repeat(fmt.group_size, axis=0) for b in blocks])
    offset = np.concatenate([fmt.grid(b)[1].repeat(fmt.group_size, axis=0) for b in blocks])
    h, e = moments.h.astype(np.float64), (w - q).astype(np.float64)
    order = moments.factor.order
    energy = np.diagonal(moments.h)[order]
    done = 0
    for unit in greedy.units(n_in):
        visit, at_once = unit.start + greedy.visits(energy[unit]), (unit.stop - unit.start) // 32
        in_turn = order[np.r_[: unit.start, visit, unit.stop : n_in]]
        for at in range(unit.start, unit.stop, at_once):
            for c in range(at, at + at_once):
                before, rest, here = in_turn[:at], in_turn[c:], in_turn[c]
                own = np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, before)] @ e[before])
                asked = (w[here] + own[0] - offset[here]) / np.abs(step[here]).clip(1e-9)
                level = (q[here] - offset[here]) / np.abs(step[here]).clip(1e-9)
                low, high = np.sort(np.sign(step[here]) * fmt.levels[[0, -1]][:, None], axis=0)
                inside = (low < asked) & (asked < high)
                assert (np.abs(level - asked)[inside] < 0.5 + 2e-2).all(), (name, c)
                done += int(inside.sum())
    assert done > 2 * n_in
