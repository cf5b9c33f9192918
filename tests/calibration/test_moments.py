"""Sums of products are those of all tokens, however they are cut."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tqgguf.calibration.bench import Step
from tqgguf.calibration.desk import SIZES, open_desk
from tqgguf.calibration.moments import Accumulator, InputMoments
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.work import added_up, put_rows
from tqgguf.errors import WeightError
from tqgguf.machine.crew import Crew

EDGES = (0, 100, 300, 500)  # of chunks of tokens


def summed(folder, x, d):
    """Moments of x, (500, 96), and x with d, (500, 40), in tiles of 32 columns, and their runs."""
    with open_desk(folder) as desk:
        small = replace(desk, sizes=replace(SIZES, tile=32, narrowest=32, run=60))
        for name, whole in (("x.k", x), ("d.k", d)):
            for i, (a, b) in enumerate(pairwise(EDGES)):
                put_rows(small, name, whole[a:b], EDGES, i)
        taker = Accumulator(small, Feedback(), d.shape[1], range(len(EDGES) - 1))
        step = Step(0, ("a",), (500,), shared=True, aims=True, streams=True)
        wanted = [InputMoments("k", "a.weight", 96, step, share=1.0)]

        def both():
            yield from taker.sum(wanted, sums=48)
            yield from taker.factor(wanted)

        for _ in Crew().together([both()]):
            pass
        return [np.array(small.get(name)) for name in ("m.k.0", "hd.k")]


def test_runs_of_tokens_add_up_to_the_mean_of_all(tmp_path):
    rng = np.random.default_rng(3)
    x, d = (rng.standard_normal((500, n)).astype(np.float32) for n in (96, 40))
    for runs, right in zip(summed(tmp_path, x, d), (x, d), strict=True):
        assert len(runs) > 1
        np.testing.assert_allclose(added_up(runs), x.T @ right / 500, atol=1e-6)


@pytest.mark.parametrize("token", [0, 299, 499])
def test_a_token_that_is_not_finite_is_found_in_any_run(tmp_path, token):
    x, d = (np.ones((500, n), np.float32) for n in (96, 40))
    d[token, 7] = np.nan
    with pytest.raises(WeightError, match=r"a\.weight: .* NaN or Inf"):
        summed(tmp_path, x, d)
