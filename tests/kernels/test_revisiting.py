"""Sweeps of error feedback: many codes are visited at once, and no row's error ever rises."""

from itertools import pairwise

import numpy as np
import pytest

from tests.kernels.test_feedback import correlated, rounded
from tqgguf.kernels import feedback, revisiting

N_IN = 320


def shared(rng):
    """Second moments of heads that share their values: inputs come again after 64 places."""
    x = np.tile(rng.standard_normal((4 * N_IN, 64)), N_IN // 64)
    x += 0.1 * rng.standard_normal(x.shape)
    return (x.T @ x / len(x)).astype(np.float32)


def alike(rng):
    """Second moments of inputs that all go together, so that no order of visits helps."""
    x = rng.standard_normal((4 * N_IN, 1)) + 0.05 * rng.standard_normal((4 * N_IN, N_IN))
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.mark.parametrize("moments", [shared, alike])
@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL"])
def test_no_row_gets_worse_from_sweep_to_sweep(moments, name):
    rng = np.random.default_rng(21)
    w, h = rng.standard_normal((N_IN, 24)).astype(np.float32), moments(rng)
    damped = feedback.factored(h).h
    errors = [
        feedback.output_error(w, rounded(w, name, h, sweeps=sweeps)[1], damped)
        for sweeps in range(4)
    ]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-4)).all()
    assert errors[-1].sum() < 0.985 * errors[0].sum()


@pytest.mark.parametrize("n_in", [32, 64, 96, 256, 320, 576, 896])
def test_panels_are_whole_blocks_of_any_type_and_visit_each_column_once(n_in):
    found = revisiting.panels(n_in)
    assert [p.start for p in found[1:]] == [p.stop for p in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, n_in)
    for block in (32, 64, 128, 256):
        assert n_in % block or all(p.start % block == 0 for p in found)
    h = correlated(np.random.default_rng(22), n_in)
    spans, visited = revisiting.visits(h, 0.0)
    for here, count in zip(found, spans, strict=True):
        panel = revisiting.panel(h[here, here].copy(), here, count, visited, 32, 16)
        np.testing.assert_array_equal(panel.order[panel.back], np.arange(here.stop - here.start))
        assert here.stop - here.start <= 512
